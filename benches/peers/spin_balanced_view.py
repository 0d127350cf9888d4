"""Tasks that spin, by an unmodified ipyparallel client: `spin_balanced_view.py CLIENT_FILE TASKS MS [TASKS MS]...`."""
import sys

import ipyparallel as ipp
from measured import grains

client = ipp.Client(connection_info=sys.argv[1])
client.wait_for_engines(2, timeout=60)
view = client.load_balanced_view()
grains(sys.argv[2:], lambda spin, numbers, ms: view.map_sync(spin, numbers, ms, chunksize=1))
