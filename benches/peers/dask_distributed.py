"""dask.distributed with 2 worker processes of one thread: `dask_distributed.py TASKS LATENCIES`. Prints `name value` lines."""
import sys
import time

from distributed import Client, LocalCluster


def noop(x):
    return x


def main(tasks, latencies):
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster, Client(cluster) as client:
        client.gather(client.map(noop, range(20), pure=False))
        began = time.perf_counter()
        values = client.gather(client.map(noop, range(tasks), pure=False))
        seconds = time.perf_counter() - began
        if values != list(range(tasks)):
            sys.exit("wrong values")
        print("tasks", tasks)
        print("seconds", seconds)
        times = []
        for i in range(latencies):
            began = time.perf_counter()
            client.submit(noop, i, pure=False).result()
            times.append(time.perf_counter() - began)
        times.sort()
        print("median_us", times[len(times) // 2] * 1e6)
        print("p99_us", times[int(len(times) * 0.99)] * 1e6, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
