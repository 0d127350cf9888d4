"""Tasks that spin, each in a new Python process, since HyperQueue runs nothing else: `spin_hyperqueue.py SPIN_FILE TASKS MS [TASKS MS]...`."""
import os
import sys
import tempfile

from hyperqueue import Job, LocalCluster
from hyperqueue.cluster import WorkerConfig
from measured import grains

CODE = "import sys; sys.path.insert(0, sys.argv[1]); from spin import spin; spin(0, float(sys.argv[2]))"


def main(directory, words):
    with LocalCluster() as cluster, tempfile.TemporaryDirectory() as work:
        cluster.start_worker(WorkerConfig(cores=2))
        client = cluster.client()

        def run(_, numbers, ms):
            job = Job(work)
            for _, each in zip(numbers, ms):
                job.program([sys.executable, "-S", "-c", CODE, directory, str(each)], stdout=None, stderr=None)
            client.wait_for_jobs([client.submit(job)])
            return numbers

        grains(words, run)


main(os.path.dirname(os.path.abspath(sys.argv[1])), sys.argv[2:])
