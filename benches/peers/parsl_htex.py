"""Parsl's HighThroughputExecutor with 2 workers: `parsl_htex.py TASKS LATENCIES`. Prints `name value` lines."""
import os
import sys
import tempfile
import time

import parsl
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
        [future.result() for future in [app(i) for i in range(20)]]
        began = time.perf_counter()
        futures = [app(i) for i in range(tasks)]
        values = [future.result() for future in futures]
        seconds = time.perf_counter() - began
        if values != list(range(tasks)):
            sys.exit("wrong values")
        print("tasks", tasks)
        print("seconds", seconds)
        times = []
        for i in range(latencies):
            began = time.perf_counter()
            app(i).result()
            times.append(time.perf_counter() - began)
        times.sort()
        print("median_us", times[len(times) // 2] * 1e6)
        print("p99_us", times[int(len(times) * 0.99)] * 1e6, flush=True)
        parsl.dfk().cleanup()


if __name__ == "__main__":
    # The workers' program is found through PATH.
    os.environ["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    main(int(sys.argv[1]), int(sys.argv[2]))
