"""Timing for the scripts of this directory, which print `name value` lines."""
import sys
import time


def throughput(tasks, run):
    """`run()` returns the values of `tasks` no-op calls."""
    began, cpu = time.perf_counter(), time.process_time()
    values = run()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    if list(values) != list(range(tasks)):
        sys.exit("wrong values")
    print("tasks %d\nseconds %r\nclient_cpu %r" % (tasks, seconds, cpu))


def times(count, call):
    """The sorted seconds of `call(0)`, `call(1)`, …"""
    taken = []
    for i in range(count):
        began = time.perf_counter()
        call(i)
        taken.append(time.perf_counter() - began)
    return sorted(taken)


def latency(count, call):
    taken = times(count, call)
    print("median_us %r\np99_us %r" % (taken[len(taken) // 2] * 1e6, taken[int(len(taken) * 0.99)] * 1e6), flush=True)
