"""An unmodified ipyparallel client's LoadBalancedView: `balanced_view.py CLIENT_FILE TASKS LATENCIES`.

Prints `name value` lines: the seconds for TASKS no-op tasks, and the time of one `apply_sync`.
"""
import sys
import time

import ipyparallel as ipp


def noop(x):
    return x


def main(client_file, tasks, latencies):
    client = ipp.Client(connection_info=client_file) if client_file.endswith(".json") else ipp.Client(profile=client_file)
    client.wait_for_engines(2, timeout=60)
    view = client.load_balanced_view()
    view.map_sync(noop, range(50))
    began, cpu = time.perf_counter(), time.process_time()
    values = view.map_sync(noop, range(tasks), chunksize=1)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    if list(values) != list(range(tasks)):
        sys.exit("wrong values")
    print("tasks", tasks)
    print("seconds", seconds)
    print("client_cpu", cpu)
    times = []
    for i in range(latencies):
        began = time.perf_counter()
        view.apply_sync(noop, i)
        times.append(time.perf_counter() - began)
    times.sort()
    print("median_us", times[len(times) // 2] * 1e6)
    print("p99_us", times[int(len(times) * 0.99)] * 1e6)


main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
