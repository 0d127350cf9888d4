"""Tasks that spin, on dask.distributed with 2 worker processes of one thread: `spin_dask.py TASKS MS [TASKS MS]...`."""
import sys

from distributed import Client, LocalCluster
from measured import grains


def main(words):
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster, Client(cluster) as client:
        grains(words, lambda spin, numbers, ms: client.gather(client.map(spin, numbers, ms, pure=False)))


if __name__ == "__main__":
    main(sys.argv[1:])
