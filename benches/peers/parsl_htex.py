"""Parsl's HighThroughputExecutor with 2 workers: `parsl_htex.py TASKS LATENCIES`."""
import os
import sys
import tempfile

import parsl
from measured import latency, throughput
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider


def noop(x):
    return x


def main(tasks, latencies):
    with tempfile.TemporaryDirectory() as run_dir:
        executor = HighThroughputExecutor(
            label="htex",
            max_workers_per_node=2,
            cores_per_worker=0.1,
            address="127.0.0.1",
            encrypted=False,
            provider=LocalProvider(init_blocks=1, max_blocks=1),
        )
        parsl.load(Config(executors=[executor], run_dir=run_dir, strategy="none", usage_tracking=0))
        app = parsl.python_app(noop)

        def run(count):
            return [future.result() for future in [app(i) for i in range(count)]]

        run(20)
        throughput(tasks, lambda: run(tasks))
        latency(latencies, lambda i: app(i).result())
        parsl.dfk().cleanup()


if __name__ == "__main__":
    # The workers' program is found through PATH.
    os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    main(int(sys.argv[1]), int(sys.argv[2]))
