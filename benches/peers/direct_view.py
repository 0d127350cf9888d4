"""An unmodified ipyparallel client's DirectView: `direct_view.py CLIENT_FILE WAIT_FOR calls COUNT ENGINES...`, or `... push MB TIMES ENGINES...`.

Prints for each number of engines the median seconds of one `apply_sync` to all of them, or of a push of an array.
"""
import statistics
import sys

import ipyparallel as ipp
from measured import times


def noop(x):
    return x


def total():
    return int(array.sum())  # noqa: F821 (the engine's)


def main(client_file, wait_for, what, size, *rest):
    client = ipp.Client(connection_info=client_file)
    client.wait_for_engines(int(wait_for), timeout=600)
    if what == "calls":
        # Imports on every engine.
        client[:].apply_sync(noop, 0)
        for engines in map(int, rest):
            view = client[client.ids[:engines]]
            taken = times(max(3, int(size) // engines), lambda i: view.apply_sync(noop, i))
            print("calls_%d" % engines, statistics.median(taken))
        return
    import numpy

    array = numpy.random.default_rng(0).integers(0, 256, int(size) * 1_000_000, dtype=numpy.uint8)
    for engines in map(int, rest[1:]):
        view = client[client.ids[:engines]]
        view.push({"array": 0}, block=True)

        def push(i):
            array[0] = i  # another array each time
            view.push({"array": array}, block=True)

        taken = times(int(rest[0]), push)
        if any(found != int(array.sum()) for found in view.apply_sync(total)):
            sys.exit("the array is not complete")
        view.push({"array": 0}, block=True)
        print("push_%d" % engines, statistics.median(taken))


main(*sys.argv[1:])
