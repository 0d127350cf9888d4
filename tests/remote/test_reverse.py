"""Engines on nodes that do not reach the controller, which is on the laptop: through reverse tunnels. See conftest.py for the hosts."""
import json
import os
import pathlib
import signal
import stat
import textwrap
import time

import pytest

from conftest import PCLUSTER, PYTHON, wait_until
from test_engines import engines_on
from test_remote import Recorded


def start(net, profile, *words):
    done = net.run("laptop", PCLUSTER, "start", "--launcher", "ssh", "--profile", profile, "--python", PYTHON, *words)
    assert done.returncode == 0, done.stderr + tunnel_logs(net, profile)
    return done.stderr


def tunnel_logs(net, profile):
    logs = net.laptop_home.glob(".ipython/profile_{}/log/tunnel-to-*.log".format(profile))
    return "".join("\n{}:\n{}".format(log, log.read_text()[-3000:]) for log in logs)


def tunnels(net, profile):
    """What `list` reports about them, by host."""
    clusters = json.loads(net.pcluster("laptop", "list", "--json"))["clusters"]
    (cluster,) = [c for c in clusters if c["profile"] == profile]
    return {tunnel["to"]: tunnel for launch in cluster["engines"] for tunnel in launch["reverse_tunnels"]}


def phases(net, profile):
    return {to: tunnel["phase"] for to, tunnel in tunnels(net, profile).items()}


def engine_ids(net, profile):
    engines = json.loads(net.pcluster("laptop", "engines", "--profile", profile, "--json"))["engines"]
    return sorted((engine["id"], engine["uuid"]) for engine in engines if engine["state"] not in ("silent", "leaving"))


def nothing_is_left(net, profile):
    for host in ("laptop", "login", "node1", "node2"):
        assert engines_on(net, host, profile) == []
    assert not [c for c in net.pids("laptop").values() if "ssh" in c or "tunnel" in c], net.pids("laptop")
    assert not list(pathlib.Path("/tmp").glob("pcluster-0/*"))
    assert not (net.cluster_home / ".pcluster").exists()
    assert not list((net.laptop_home / ".ipython" / ("profile_" + profile) / "pid").iterdir())
    served = lambda: [c for host in ("node1", "node2") for c in net.pids(host).values() if c.startswith("sshd: root")]
    wait_until("sshd's processes of the connections to end", lambda: not served())


@pytest.fixture(scope="class")
def behind(net):
    """A controller on the laptop's own loopback, and eight engines on nodes without a route to it; the profile's name."""
    output = start(net, "behind", "--host", "node1:4", "--host", "node2:4", "--tunnel", "always")
    assert "8 engines" in output and "node1: its engines reach the controller through a reverse tunnel (configured)" in output
    yield "behind"
    net.pcluster("laptop", "stop", "--profile", "behind")
    nothing_is_left(net, "behind")


class TestBehind:
    def test_eight_engines_behind_reverse_tunnels(self, net, behind):
        file = json.loads(net.client_file(behind).read_text())
        assert file["interface"] == "tcp://127.0.0.1", "only this host reaches the controller"
        assert phases(net, behind) == {"node1": "up", "node2": "up"}
        assert "reverse tunnels are up to node1, node2" in net.run("laptop", PCLUSTER, "list").stderr
        engines = json.loads(net.pcluster("laptop", "engines", "--profile", behind, "--json"))["engines"]
        assert sorted(engine["host"] for engine in engines) == ["node1"] * 4 + ["node2"] * 4
        code = """
        import ipyparallel as ipp
        client = ipp.Client(profile="behind", timeout=20)
        assert sorted(client[:].apply_sync(lambda: __import__("socket").gethostname())) == ["node1"] * 4 + ["node2"] * 4
        assert client.load_balanced_view().map_sync(lambda n: n * n, range(40)) == [n * n for n in range(40)]
        client[:].push({"data": b"x" * 10_000_000}, block=True)
        assert client[7].pull("data", block=True) == b"x" * 10_000_000
        client.close()
        """
        net.python("laptop", textwrap.dedent(code))
        # On the node the port is the loopback's alone, and the file that names it is private.
        (port,) = tunnels(net, behind)["node1"]["ports"].values()
        listening = net.ok("node1", "ss", "-Hltn", "state", "listening")
        assert "127.0.0.1:{} ".format(port) in listening and "0.0.0.0:{}".format(port) not in listening, listening
        copies = sorted(net.cluster_home.glob(".pcluster/profile_*/security/*.json"))
        assert len(copies) == 2 and all(stat.S_IMODE(copy.stat().st_mode) == 0o600 for copy in copies)
        key = json.loads(copies[0].read_text())["key"]
        state = "".join(p.read_text() for p in (net.laptop_home / ".ipython/profile_behind/pid").iterdir())
        assert key not in state + tunnel_logs(net, behind)
        assert not [c for host in ("laptop", "node1", "node2") for c in net.pids(host).values() if key in c]

    def test_a_short_cut_of_reverse_tunnels_loses_nothing(self, net, behind):
        before = engine_ids(net, behind)
        work = Recorded(net, behind, "reverse-short", n=240)
        net.link("login", "down")
        time.sleep(4)
        net.link("login", "up")
        work.finish()
        assert engine_ids(net, behind) == before
        assert {t["reconnects"] for t in tunnels(net, behind).values()} == {0}, "the same connections went on"

    def test_a_long_cut_of_reverse_tunnels_is_healed(self, net, behind):
        """The remote end has not noticed the disconnect: the process of the previous connection still holds the port."""
        before, ports = engine_ids(net, behind), {to: t["ports"] for to, t in tunnels(net, behind).items()}
        work = Recorded(net, behind, "reverse-long", n=240)
        net.link("login", "down")
        wait_until("the tunnels to be down", lambda: set(phases(net, behind).values()) == {"down"})
        assert "is lost; reconnecting" in net.run("laptop", PCLUSTER, "list").stderr
        net.link("login", "up")
        work.finish()
        wait_until("the tunnels to be up", lambda: set(phases(net, behind).values()) == {"up"})
        assert {to: t["ports"] for to, t in tunnels(net, behind).items()} == ports
        assert engine_ids(net, behind) == before

    def test_sshd_and_the_tunnel_and_the_controller_are_killed(self, net, behind):
        before = engine_ids(net, behind)
        work = Recorded(net, behind, "reverse-sshd", n=240)
        net.sshd("node1", "stop")
        wait_until("the tunnel to be down", lambda: phases(net, behind)["node1"] == "down")
        net.sshd("node1", "start")
        work.finish()
        wait_until("the tunnel to be up", lambda: phases(net, behind)["node1"] == "up")

        work = Recorded(net, behind, "reverse-process", n=240)
        for tunnel in tunnels(net, behind).values():
            os.kill(tunnel["pid"], signal.SIGKILL)
        work.finish()

        work = Recorded(net, behind, "reverse-controller", n=240)
        os.kill(json.loads(net.client_file(behind).read_text())["pcluster"]["pid"], signal.SIGKILL)
        work.finish()
        wait_until("the engines", lambda: engine_ids(net, behind) == before)
        wait_until("the tunnels to be up", lambda: set(phases(net, behind).values()) == {"up"})

    def test_the_login_host_between_is_rebooted(self, net, behind):
        work = Recorded(net, behind, "reverse-reboot", n=240)
        net.reboot("login")
        work.finish()
        wait_until("the tunnels to be up", lambda: set(phases(net, behind).values()) == {"up"})

    def test_the_laptop_is_rebooted(self, net, behind):
        """The controller comes back with its keys and ports, the tunnels lead to it, and the engines have waited."""
        before = engine_ids(net, behind)
        wait_until("all of the laptop to end", lambda: [net.kill_all("laptop")] and not net.pids("laptop"))
        output = start(net, behind, "--host", "node1:4", "--host", "node2:4", "--tunnel", "always")
        assert "8 earlier engines are still running and are kept" in output and output.count("had exited and was restarted") == 2, output
        wait_until("the engines", lambda: engine_ids(net, behind) == before)
        out = net.pcluster("laptop", "map", "--profile", behind, "math:sqrt", "--range", "4..5")
        assert out.split() == ["2.0"]


def test_a_permanent_disconnect_moves_the_tasks(net):
    """Also an engine on login, which reaches the controller directly."""
    output = start(net, "moves", "--host", "node1:2", "--host", "login:2", "--set", "controller.lease_ms=3000", "--set", "controller.heartbeat_interval_ms=500")
    assert "login: the controller is reached directly" in output
    assert "node1: its engines reach the controller through a reverse tunnel (" in output and "unreachable" in output
    assert list(phases(net, "moves")) == ["node1"]
    work = Recorded(net, "moves", "moves", n=60, seconds=0.2)
    net.link("node1", "down")
    try:
        out, err = work.running.communicate(timeout=100)
        assert work.running.returncode == 0, err
        assert [int(line) for line in out.split()] == [n * n for n in range(work.n)]
        # Only the tasks that node1 had at the disconnect ran elsewhere too: one running and one prefetched per engine.
        ran = work.ran.read_text().split()
        assert work.n <= len(ran) <= work.n + 4 and set(map(int, ran)) == set(range(work.n))
        code, err = net.fails("laptop", "stop", "--profile", "moves")
        assert "node1" in err
    finally:
        net.link("node1", "up")
    net.pcluster("laptop", "stop", "--profile", "moves")
    nothing_is_left(net, "moves")


def test_an_ipengine_behind_a_reverse_tunnel(net):
    start(net, "stock", "--host", "node2:1", "--engine", "ipengine", "--tunnel", "always")
    assert len(tunnels(net, "stock")["node2"]["ports"]) >= 8
    code = """
    import ipyparallel as ipp
    client = ipp.Client(profile="stock", timeout=20)
    assert client[:].apply_sync(lambda: __import__("socket").gethostname()) == ["node2"]
    assert client.load_balanced_view().map_sync(abs, range(-9, 0)) == list(range(9, 0, -1))
    client.close()
    """
    net.python("laptop", textwrap.dedent(code))
    net.pcluster("laptop", "stop", "--profile", "stock")
    nothing_is_left(net, "stock")


def test_a_host_without_forwarding_is_reported(net):
    config = net.state / "etc/closed.sshd_config"
    config.write_text((net.state / "etc/node1.sshd_config").read_text().replace("Port 22", "Port 2296\nAllowTcpForwarding no").replace("node1.sshd.pid", "closed.pid"))
    closed = net.start("node1", "/usr/sbin/sshd", "-D", "-f", config)
    known = net.laptop_home / ".ssh/known_hosts"
    good = known.read_text()
    try:
        known.write_text(good + "[node1]:2296 " + next(l for l in good.splitlines() if l.startswith("node1 ")).split(" ", 1)[1] + "\n")
        words = ["start", "--launcher", "ssh", "--profile", "closed", "--python", PYTHON, "--host", "ssh://node1:2296:1"]
        err = wait_until("its sshd", lambda: (lambda e: e if "no ssh server" not in e else None)(net.fails("laptop", *words)[1]))
        assert "cannot open a tunnel" in err and "does not forward" in err, err
        code, err = net.fails("laptop", *words[:-2], "--tunnel", "never", "--host", "node1:1", "--set", "controller.registration_timeout_ms=2000")
        assert "no controller answered" in err and "Network is unreachable" in err
        code, err = net.fails("laptop", *words[:-2], "--tunnel", "never", "--host", "node1:1", "--ip", "127.0.0.1")
        assert "127.0.0.1" in err
    finally:
        known.write_text(good)
        closed.kill()
        closed.communicate()
    nothing_is_left(net, "closed")
