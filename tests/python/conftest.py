"""Real clusters for the tests, in a temporary IPython directory. All their processes are ended after the test."""
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: E402,F401

REPOSITORY = pathlib.Path(__file__).parents[2]
# `cargo xtask test` runs it for each available batch system.
collect_ignore = [] if os.environ.get("PCLUSTER_TEST_BATCH") else ["test_batch.py"]


def pcluster_binary():
    named = os.environ.get("PCLUSTER_BIN")
    return os.path.abspath(named) if named else str(REPOSITORY / "target" / "debug" / "pcluster")


class Cluster:
    """A cluster started by `pcluster start` in its own IPython directory, for this Python's environment."""

    def __init__(self, *arguments):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="pcluster-test-"))
        self.ipython_dir = self.folder / "ipython"
        self.ipython_dir.mkdir()
        guard = (REPOSITORY / "tests" / "guard.sh").read_text()
        self.guard = subprocess.Popen(
            ["sh", "-c", guard, "guard", str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("PCLUSTER_")}
        self.environment["IPYTHONDIR"] = str(self.ipython_dir)
        # Like in a shell with this environment activated.
        self.environment["VIRTUAL_ENV"] = sys.prefix
        try:
            self.run("start", *arguments)
        except BaseException:
            self.end()
            raise

    def run(self, *arguments, timeout=120):
        """Runs `pcluster …`, which must succeed; returns its stdout."""
        done = subprocess.run(
            [pcluster_binary(), *arguments],
            env=self.environment,
            cwd=str(self.folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            universal_newlines=True,
            timeout=timeout,
        )
        assert done.returncode == 0, "pcluster {} ended with {}:\n{}{}".format(
            " ".join(arguments), done.returncode, done.stdout, done.stderr
        )
        return done.stdout

    def end(self):
        """Kills remaining processes and removes the directory."""
        self.guard.stdin.close()
        self.guard.wait(60)


def wait_until(what, answer, timeout_s=60):
    """Polls until `answer` returns a true value; returns it."""
    started = time.monotonic()
    while True:
        result = answer()
        if result:
            return result
        assert time.monotonic() - started < timeout_s, "waited {} s for {}".format(timeout_s, what)
        time.sleep(0.02)


@pytest.fixture
def guarded_home():
    """A home directory; processes that use it are ended after the test."""
    home = pathlib.Path(tempfile.mkdtemp(prefix="pcluster-test-"))
    guard = (REPOSITORY / "tests" / "guard.sh").read_text()
    guard = subprocess.Popen(
        ["sh", "-c", guard, "guard", str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    yield home
    guard.stdin.close()
    guard.wait(60)


@pytest.fixture(scope="session", params=["pcluster", "ipengine"])
def cluster(request):
    """A cluster of two engines of each kind, shared by the tests."""
    running = Cluster("-n", "2", "--engine", request.param)
    running.engine_kind = request.param
    yield running
    running.run("stop")
    running.end()


@pytest.fixture(scope="session")
def client(cluster):
    """An unmodified ipyparallel client, connected by the profile's name."""
    ipp = pytest.importorskip("ipyparallel", reason="ipyparallel is not installed in this Python")
    before = os.environ.get("IPYTHONDIR")
    os.environ["IPYTHONDIR"] = str(cluster.ipython_dir)
    try:
        connected = ipp.Client(profile="default", timeout=30)
    finally:
        if before is None:
            del os.environ["IPYTHONDIR"]
        else:
            os.environ["IPYTHONDIR"] = before
    yield connected
    connected.close()
