"""HyperQueue's PyPI package: its server and a worker of 2 cores in one process, `true` many times: `hyperqueue_true.py TASKS`.

Prints `name value` lines. The package carries no `hq` command; this is its Python interface.
"""
import sys
import tempfile
import time

from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig


def job(tasks, directory):
    job = Job(directory)
    for number in range(tasks):
        job.program(["/bin/true", str(number)], stdout=None, stderr=None)
    return job


def main(tasks):
    with LocalCluster() as cluster, tempfile.TemporaryDirectory() as directory:
        cluster.start_worker(WorkerConfig(cores=2))
        client = cluster.client()
        client.wait_for_jobs([client.submit(job(10, directory))])
        many = job(tasks, directory)
        began = time.perf_counter()
        client.wait_for_jobs([client.submit(many)])
        print("tasks", tasks)
        print("seconds", time.perf_counter() - began, flush=True)


main(int(sys.argv[1]))
