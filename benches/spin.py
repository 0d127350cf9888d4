"""The function of `cargo xtask bench grain`: it occupies a processor for some milliseconds."""
from time import perf_counter


def spin(number, ms):
    end = perf_counter() + ms / 1000
    while perf_counter() < end:
        pass
    return number
