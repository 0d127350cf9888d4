"""How often each two-digit number stands in the digits of pi.

    pcluster map examples/pi/pidigits.py:two_digit_counts pi-digits/files.txt --reduce examples/pi/pidigits.py:add_counts
"""
import operator
from collections import Counter


def two_digit_counts(path):
    """Counts of the pairs 00 to 99 in a file of digits, as a list of 100 numbers.

    Pairs overlap: 1415 holds 14, 41 and 15. A file of n digits has n - 1 pairs; a pair that lies across the border
    of two files is in neither.
    """
    with open(path) as f:
        digits = f.read().strip()
    pairs = Counter(map(operator.add, digits, digits[1:]))
    return [pairs["%02d" % n] for n in range(100)]


def add_counts(a, b):
    """The sum of two such lists."""
    return [x + y for x, y in zip(a, b)]
