"""Measures how long ipyparallel's own cluster takes to start and register N engines: ipcluster_start.py N ENGINES, where ENGINES is
one of its launchers (`local`, `slurm`). Includes the time of its imports, since the other contenders include their startup. Prints seconds."""
import time

began = time.monotonic()

import sys

import ipyparallel as ipp

n, engines = int(sys.argv[1]), sys.argv[2]
cluster = ipp.Cluster(n=n, engines=engines, cluster_id="start-{}-{}".format(engines, n), log_level=40)
try:
    client = cluster.start_and_connect_sync(n=n, activate=False)
    print(time.monotonic() - began)
    client.close()
finally:
    cluster.stop_cluster_sync()
