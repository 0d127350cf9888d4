"""HyperQueue's Python package (which has no `hq` command): a server and a worker of 2 cores run `true`: `hyperqueue_true.py TASKS`."""
import sys
import tempfile

from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig
from measured import throughput


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

        def run():
            client.wait_for_jobs([client.submit(many)])
            return range(tasks)

        throughput(tasks, run)


main(int(sys.argv[1]))
