"""Tests of the programs in examples/notebooks/ with a cluster; their results are compared to independent computations."""
import importlib.util
import json
import math
import subprocess
import sys

import pytest

ipp = pytest.importorskip("ipyparallel", reason="ipyparallel is not installed in this Python")
numpy = pytest.importorskip("numpy", reason="numpy is not installed in this Python")
pytest.importorskip("matplotlib", reason="matplotlib is not installed in this Python")

from conftest import REPOSITORY, Cluster  # noqa: E402

NOTEBOOKS = REPOSITORY / "examples" / "notebooks"


@pytest.fixture(scope="module")
def cluster():
    running = Cluster("-n", "2")
    yield running
    running.run("stop")
    running.end()


@pytest.fixture
def run(cluster, tmp_path):
    def run(name, *arguments):
        """Runs a program; returns its last line of output and its plots."""
        done = subprocess.run(
            [sys.executable, str(NOTEBOOKS / name), "--out", str(tmp_path / "plots"), *arguments],
            env=cluster.environment,
            cwd=str(tmp_path),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            timeout=110,
        )
        assert done.returncode == 0, done.stderr
        plots = {path.name: path.read_bytes() for path in (tmp_path / "plots").glob("*.png")}
        assert all(plot.startswith(b"\x89PNG") and len(plot) > 5000 for plot in plots.values())
        return json.loads(done.stdout.splitlines()[-1]), set(plots)

    return run


def test_all_programs_are_tested_and_documented():
    programs = {path.name for path in NOTEBOOKS.glob("*.py")}
    assert programs == {"monte_carlo_pi.py", "pi_digit_pairs.py", "option_pricing.py"}
    assert all(name in (NOTEBOOKS / "README.md").read_text() for name in programs)


def test_monte_carlo_pi(run):
    found, plots = run("monte_carlo_pi.py", "--points", "100000", "--shares", "5")

    def points_within(seed):
        x, y = numpy.random.default_rng(seed).random((2, 100_000))
        return int((numpy.hypot(x, y) <= 1).sum())

    assert found["engines"] == 2
    assert found["direct"] == [points_within(seed) for seed in range(5)]
    assert found["parallel"] == [points_within(seed) for seed in range(5, 10)]
    assert found["pi_direct"] == 4 * sum(found["direct"]) / 500_000
    for estimate in (found["pi_direct"], found["pi_parallel"]):
        # Five standard deviations for 500,000 points.
        assert abs(estimate - math.pi) < 5 * 4 * math.sqrt(math.pi / 4 * (1 - math.pi / 4) / 500_000)
    assert plots == {"pi_points.png", "pi_convergence.png"}


def test_pi_digit_pairs(run, tmp_path):
    found, plots = run("pi_digit_pairs.py", "--digits", "30000", "--files", "7")
    assert plots == {"pi_digit_pairs.png"}
    # Counted with the functions of the other example.
    spec = importlib.util.spec_from_file_location("pidigits", str(REPOSITORY / "examples" / "pi" / "pidigits.py"))
    pidigits = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pidigits)
    files = (tmp_path / "plots" / "pi-digits" / "files.txt").read_text().split()
    assert len(files) == 7
    counts = [sum(column) for column in zip(*(pidigits.two_digit_counts(path) for path in files))]
    assert found["counts"] == counts and sum(counts) == 30_000 - 7
    assert counts[int(found["rarest"])] == min(counts) and counts[int(found["most_frequent"])] == max(counts)
    # 99 degrees of freedom: outside of 50 to 160 with very low probability, and the digits of pi are fixed.
    assert 50 < found["chi_squared"] < 160


def test_option_pricing(run):
    found, plots = run("option_pricing.py", "--paths", "500")
    assert plots == {"option_prices.png"} and found["engines"] == [0, 1]
    prices = numpy.array(found["prices"])
    assert prices.shape == (15, 15, 4)
    strikes, volatilities = numpy.meshgrid(found["strikes"], found["volatilities"], indexing="ij")
    call, put, asian_call, asian_put = numpy.moveaxis(prices, 2, 0)
    exact = numpy.vectorize(black_scholes)(strikes, volatilities)
    # Four standard errors: a payoff's deviation is less than that of the price itself.
    error = 4 * 100 * math.exp(0.05) * numpy.sqrt(numpy.expm1(volatilities**2)) / math.sqrt(500)
    assert (abs(call - exact) < error).all()
    # The same paths for all: call minus put is the same discounted price minus the discounted strike.
    parity = call - put + strikes * math.exp(-0.05)
    assert numpy.allclose(parity, parity[0], atol=1e-9)
    # A mean varies less than a last price and grows less; all prices rise and fall with strike and volatility as they must.
    assert (asian_call < call).all()
    assert (numpy.diff(call, axis=0) < 0).all() and (numpy.diff(put, axis=0) > 0).all()
    assert (numpy.diff(asian_call, axis=1) > 0).all() and (numpy.diff(asian_put, axis=1) > 0).all()


def black_scholes(strike, volatility, price=100.0, rate=0.05):
    """The exact price of a European call over a year."""
    up = (math.log(price / strike) + rate + volatility**2 / 2) / volatility
    normal = lambda x: (1 + math.erf(x / math.sqrt(2))) / 2  # noqa: E731
    return price * normal(up) - strike * math.exp(-rate) * normal(up - volatility)
