"""Four hosts with real sshd on this machine (ci/ssh/up.sh): laptop - login - node1, node2. The laptop reaches login alone."""
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from skips import pytest_make_collect_report, pytest_runtest_makereport  # noqa: E402,F401

REPOSITORY = pathlib.Path(__file__).parents[2]
PCLUSTER = os.path.abspath(os.environ.get("PCLUSTER_BIN") or str(REPOSITORY / "target" / "debug" / "pcluster"))
PYTHON = os.environ.get("PCLUSTER_TEST_PYTHON") or sys.executable


class Net:
    """The hosts, and what is done on them."""

    def __init__(self):
        self.state = pathlib.Path(tempfile.mkdtemp(prefix="pr"))
        self.prefix = "p{}".format(os.getpid() % 10000)
        environment = dict(os.environ, SSHNET_PREFIX=self.prefix)
        up = subprocess.run(
            [str(REPOSITORY / "ci/ssh/up.sh"), str(self.state)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
            timeout=90,
        )
        if up.returncode != 0:
            shutil.rmtree(str(self.state), ignore_errors=True)
            raise RuntimeError("no hosts can be made here: " + up.stdout.strip())
        self.laptop_home = self.state / "local"
        self.cluster_home = self.state / "cluster"

    def end(self):
        subprocess.run([str(REPOSITORY / "ci/ssh/down.sh"), str(self.state), "--purge"], stdout=subprocess.DEVNULL, timeout=90)

    def start(self, host, *words, **more):
        """A command in the background."""
        more.setdefault("stdout", subprocess.PIPE)
        more.setdefault("stderr", subprocess.PIPE)
        return subprocess.Popen(
            [str(self.state / "on"), host, *map(str, words)], stdin=subprocess.DEVNULL, universal_newlines=True, **more
        )

    def run(self, host, *words, timeout=90):
        running = self.start(host, *words)
        try:
            out, err = running.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            running.kill()
            out, err = running.communicate()
            raise AssertionError("{} on {} did not end:\n{}{}".format(words, host, out, err))
        return subprocess.CompletedProcess(words, running.returncode, out, err)

    def ok(self, host, *words, timeout=90):
        """Its stdout; it must succeed."""
        done = self.run(host, *words, timeout=timeout)
        assert done.returncode == 0, "{} on {} ended with {}:\n{}{}\n{}".format(
            words, host, done.returncode, done.stdout, done.stderr, self.logs()
        )
        return done.stdout

    def pcluster(self, host, *words, timeout=90):
        return self.ok(host, PCLUSTER, *words, timeout=timeout)

    def fails(self, host, *words, timeout=90):
        """(exit code, stderr) of a pcluster that must fail."""
        done = self.run(host, PCLUSTER, *words, timeout=timeout)
        assert done.returncode != 0, done
        return done.returncode, done.stderr

    def python(self, host, code, *words, timeout=90):
        return self.ok(host, PYTHON, "-c", code, *words, timeout=timeout)

    def sshd(self, host, what):
        subprocess.run([str(self.state / "sshd"), host, what], check=True, timeout=30)

    def link(self, host, what):
        subprocess.run([str(self.state / "link"), host, what], check=True, timeout=30)

    def reboot(self, host):
        """All of its processes end, and its sshd starts again."""
        self.kill_all(host)
        self.sshd(host, "start")

    def kill_all(self, host):
        for pid in self.pids(host):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

    def pids(self, host):
        """The processes of a host, but for the one that makes it one."""
        out = subprocess.run(["ip", "netns", "pids", "{}-{}".format(self.prefix, host)], stdout=subprocess.PIPE, universal_newlines=True).stdout
        found = {}
        for pid in out.split():
            try:
                command = pathlib.Path("/proc/{}/cmdline".format(pid)).read_bytes().replace(b"\0", b" ").decode()
                state = pathlib.Path("/proc/{}/stat".format(pid)).read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            if state != "Z" and not command.startswith("sleep infinity"):
                found[int(pid)] = command
        return found

    def tunnel(self, profile):
        """What `list` reports about the tunnel."""
        clusters = json.loads(self.pcluster("laptop", "list", "--json"))["clusters"]
        return next((c["tunnel"] for c in clusters if c["profile"] == profile and c["tunnel"]), None)

    def client_file(self, profile, home=None):
        return (home or self.laptop_home) / ".ipython" / ("profile_" + profile) / "security" / "ipcontroller-client.json"

    def logs(self):
        logs = self.laptop_home.glob(".ipython/profile_*/log/tunnel*.log")
        return "\n".join("{}:\n{}".format(log, log.read_text()[-3000:]) for log in logs)


def wait_until(what, answer, timeout_s=60):
    begun = time.monotonic()
    while True:
        answered = answer()
        if answered:
            return answered
        assert time.monotonic() - begun < timeout_s, "waited {} s for {}".format(timeout_s, what)
        time.sleep(0.05)


@pytest.fixture(scope="session")
def net():
    if os.getuid() != 0:
        pytest.skip("only root can make network namespaces")
    hosts = Net()
    # A login shell that greets its user, as many do, must not confuse anybody.
    (hosts.cluster_home / ".bashrc").write_text("echo Welcome to the cluster\n")
    try:
        yield hosts
    finally:
        hosts.end()


@pytest.fixture(scope="session")
def on_node(net):
    """A cluster whose controller is on node1, reached from login but not from the laptop; the profile's name."""
    net.pcluster("node1", "start", "-n", "2", "--profile", "hpc", "--ip", "0.0.0.0", "--python", PYTHON)
    return "hpc"


@pytest.fixture
def connected(net, on_node):
    """The laptop, connected to it."""
    net.pcluster("laptop", "connect", "login", "--profile", on_node)
    yield on_node
    net.run("laptop", PCLUSTER, "disconnect", "--profile", on_node)


@pytest.fixture(autouse=True)
def all_is_well_again(request):
    """A test that fails in the middle of a cut leaves no cut."""
    yield
    if "net" in request.fixturenames:
        net = request.getfixturevalue("net")
        net.link("login", "up")
        if not any("sshd" in command and "listener" in command for command in net.pids("login").values()):
            net.sshd("login", "start")
