"""dask.distributed with 2 worker processes of one thread: `dask_distributed.py TASKS LATENCIES`."""
import sys

from distributed import Client, LocalCluster
from measured import latency, throughput


def noop(x):
    return x


def main(tasks, latencies):
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster, Client(cluster) as client:
        client.gather(client.map(noop, range(20), pure=False))
        throughput(tasks, lambda: client.gather(client.map(noop, range(tasks), pure=False)))
        latency(latencies, lambda i: client.submit(noop, i, pure=False).result())


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
