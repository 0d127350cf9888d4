"""Tests of the demo's example: the digits of pi and the counts of digit pairs are correct."""
import importlib.util
import os
import pathlib

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "pi"


def load(name):
    spec = importlib.util.spec_from_file_location(name, str(EXAMPLE / (name + ".py")))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_digits_of_pi(tmp_path):
    make_digits = load("make_digits")
    make_digits.main(["--digits", "20001", "--files", "7", "--out", str(tmp_path / "pi")])
    paths = (tmp_path / "pi" / "files.txt").read_text().splitlines()
    assert len(paths) == 7 and all(os.path.isabs(path) for path in paths)
    digits = "".join(pathlib.Path(path).read_text() for path in paths)
    assert digits.startswith("31415926535897932384626433832795028841971693993751")
    assert len(digits) == 20001
    assert digits[:4000] == machin(4000)
    # Published: the decimals 9,991 to 10,000.
    assert digits[9991:10001] == "5256375678"


def machin(count):
    """The first digits of pi by another formula: 16 arctan(1/5) - 4 arctan(1/239)."""
    one = 10 ** (count + 10)

    def arctan_of_inverse(x):
        total = term = one // x
        for divisor in range(3, 10**9, 2):
            term //= -x * x
            if term in (0, -1):
                return total
            total += term // divisor

    return str(16 * arctan_of_inverse(5) - 4 * arctan_of_inverse(239))[:count]


def test_pairs_overlap_and_add_up(tmp_path):
    pidigits = load("pidigits")
    path = tmp_path / "digits"
    path.write_text("314111\n")
    counts = pidigits.two_digit_counts(str(path))
    assert len(counts) == 100 and sum(counts) == 5
    assert {n: c for n, c in enumerate(counts) if c} == {31: 1, 14: 1, 41: 1, 11: 2}
    assert pidigits.add_counts(counts, counts) == [2 * count for count in counts]
