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


def spin(number, ms):
    """As in benches/spin.py; here it has no global names, so that every peer can pickle it by value."""
    from time import perf_counter

    end = perf_counter() + ms / 1000
    while perf_counter() < end:
        pass
    return number


def grains(words, run):
    """`run(spin, numbers, ms)` returns the values of all calls; `words` are `TASKS MS` pairs, of which each prints `MS seconds`."""
    import __main__

    spin.__module__ = __main__.__name__
    __main__.spin = spin
    run(spin, range(10), [1.0] * 10)
    for tasks, ms in zip(map(int, words[::2]), words[1::2]):
        began = time.perf_counter()
        values = run(spin, range(tasks), [float(ms)] * tasks)
        seconds = time.perf_counter() - began
        if list(values) != list(range(tasks)):
            sys.exit("wrong values")
        print("%s %r" % (ms, seconds), flush=True)
