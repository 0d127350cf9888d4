#!/usr/bin/env python3
"""Writes the first digits of pi into files, and a list of those files.

    python3 examples/pi/make_digits.py --digits 1000000 --files 15 --out pi-digits

makes pi-digits/pi.01of15.txt and so on, each with its share of the digits ("31415...": the leading 3 is the first
digit, there is no point and no newline), and pi-digits/files.txt with one absolute path a line.

Needs only Python's standard library: Chudnovsky's series by binary splitting, in `decimal` numbers, whose C
implementation multiplies large numbers by number-theoretic transform (Python's own integers would take days).
"""
import argparse
import decimal
import os
import sys
import time

# 1 / pi = 12 * sum of (-1)^k (6k)! (13591409 + 545140134 k) / ((3k)! (k!)^3 640320^(3k + 3/2))
DIGITS_PER_TERM = 14.181647462725477
C3_OVER_24 = 640320**3 // 24
# Up to this many terms are summed as Python integers, which are faster for small numbers.
SMALL = 64
# More digits than are kept, for what rounding eats.
GUARD = 20


def sum_terms(first, end):
    """P, Q and T of binary splitting for the terms first..end-1, as integers."""
    if end - first == 1:
        if first == 0:
            return 1, 1, 13591409
        p = (6 * first - 5) * (2 * first - 1) * (6 * first - 1)
        q = first * first * first * C3_OVER_24
        t = p * (13591409 + 545140134 * first)
        return p, q, -t if first % 2 else t
    middle = (first + end) // 2
    p1, q1, t1 = sum_terms(first, middle)
    p2, q2, t2 = sum_terms(middle, end)
    return p1 * p2, q1 * q2, q2 * t1 + p1 * t2


def sum_many_terms(first, end, need_p=True):
    """The same as exact decimals. P of the last part is not needed by anyone."""
    if end - first <= SMALL:
        return tuple(decimal.Decimal(n) for n in sum_terms(first, end))
    middle = (first + end) // 2
    p1, q1, t1 = sum_many_terms(first, middle)
    p2, q2, t2 = sum_many_terms(middle, end, need_p)
    return (p1 * p2 if need_p else None), q1 * q2, q2 * t1 + p1 * t2


def square_root(n, digits):
    """By Newton's iteration on 1 / sqrt(n), which only multiplies; `decimal`'s own is several times slower at a million digits."""
    context = decimal.getcontext()
    precisions = [digits]
    while precisions[-1] > 40:
        precisions.append(precisions[-1] // 2 + 5)
    context.prec = precisions.pop() + 10
    inverse = 1 / decimal.Decimal(n).sqrt()
    while precisions:
        context.prec = precisions.pop() + 10
        inverse += inverse * (1 - n * inverse * inverse) / 2
    return n * inverse


def pi_digits(count):
    """The first `count` digits of pi as text, beginning with 3."""
    context = decimal.getcontext()
    # While the series is summed, numbers are integers and must stay exact.
    context.prec = decimal.MAX_PREC
    context.Emax = decimal.MAX_EMAX
    context.Emin = decimal.MIN_EMIN
    terms = int((count + GUARD) / DIGITS_PER_TERM) + 2
    _, q, t = sum_many_terms(0, terms, need_p=False)
    # Fractions from here on, no longer than needed.
    root = square_root(10005, count + GUARD)
    context.prec = count + GUARD
    pi = root * 426880 * q / t
    digits = str(pi).replace(".", "", 1)
    return digits[:count]


def write_files(digits, files, out):
    """Writes the parts, then the list of them; returns the list's path. Parts differ in length by one digit at most."""
    os.makedirs(out, exist_ok=True)
    width = len(str(files))
    paths = []
    for i in range(files):
        name = "pi.{:0{w}}of{}.txt".format(i + 1, files, w=width)
        path = os.path.abspath(os.path.join(out, name))
        with open(path, "w") as f:
            f.write(digits[len(digits) * i // files : len(digits) * (i + 1) // files])
        paths.append(path)
    listing = os.path.join(out, "files.txt")
    with open(listing, "w") as f:
        f.write("".join(path + "\n" for path in paths))
    return listing


def main(argv=None):
    parser = argparse.ArgumentParser(description="Write the first digits of pi into files, and a list of them.")
    parser.add_argument("--digits", type=int, default=1000000, help="how many (default: 1000000)")
    parser.add_argument("--files", type=int, default=15, help="into how many files (default: 15)")
    parser.add_argument("--out", default="pi-digits", help="directory to write into (default: pi-digits)")
    args = parser.parse_args(argv)
    if args.files < 1 or args.digits < args.files:
        parser.error("there must be at least one file, and one digit for each")
    begun = time.time()
    digits = pi_digits(args.digits)
    listing = write_files(digits, args.files, args.out)
    print("{} digits of pi in {} files, listed in {} ({:.1f} s)".format(args.digits, args.files, listing, time.time() - begun))


if __name__ == "__main__":
    sys.exit(main())
