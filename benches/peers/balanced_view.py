"""An unmodified ipyparallel client's LoadBalancedView: `balanced_view.py CLIENT_FILE TASKS LATENCIES`."""
import sys

import ipyparallel as ipp
from measured import latency, throughput


def noop(x):
    return x


client_file, tasks, latencies = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
client = ipp.Client(connection_info=client_file)
client.wait_for_engines(2, timeout=60)
view = client.load_balanced_view()
view.map_sync(noop, range(50))
throughput(tasks, lambda: view.map_sync(noop, range(tasks), chunksize=1))
latency(latencies, lambda i: view.apply_sync(noop, i))
