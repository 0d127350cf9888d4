"""Engines on two nodes, started and ended over ssh (`--launcher ssh`). See conftest.py for the hosts."""
import json
import os
import signal
import stat

import pytest

from conftest import PCLUSTER, PYTHON, wait_until

WHERE = """
import os, socket

def where(n):
    return [socket.gethostname(), os.environ.get("MINE", "")]
"""


def launch(net, profile, *words):
    return net.run("login", PCLUSTER, "start", "--launcher", "ssh", "--profile", profile, "--python", PYTHON, *words)


def engines_on(net, host, profile):
    return [command for command in net.pids(host).values() if "engine" in command and ("profile_" + profile in command or ".pcluster/" in command)]


def where(net, profile, n=40):
    (net.cluster_home / "where.py").write_text(WHERE)
    out = net.pcluster("login", "map", "--profile", profile, "where.py:where", "--range", "0..{}".format(n))
    return [json.loads(line) for line in out.splitlines()]


def test_engines_on_two_nodes(net):
    done = launch(net, "two", "--host", "node1:4", "--host", "root@node2:4")
    assert done.returncode == 0, done.stderr
    assert "8 engines" in done.stderr
    engines = json.loads(net.pcluster("login", "engines", "--profile", "two", "--json"))["engines"]
    assert sorted(engine["host"] for engine in engines) == ["node1"] * 4 + ["node2"] * 4
    assert {host for host, _ in where(net, "two")} <= {"node1", "node2"}
    # The home directory is shared: nothing is copied, and the logs are here.
    assert not (net.cluster_home / ".pcluster").exists()
    assert "engine" in net.pcluster("login", "logs", "engines", "7", "--profile", "two")
    # The process that started them may have ended; no ssh process is left.
    assert not [c for host in ("login", "node1", "node2") for c in net.pids(host).values() if c.startswith("ssh ") or "sshd-session" in c]
    net.pcluster("login", "engines", "add", "2", "--host", "node1", "--profile", "two")
    listed = json.loads(net.pcluster("login", "list", "--json"))["clusters"]
    assert [c["engines_alive"] for c in listed if c["profile"] == "two"] == [10]
    net.pcluster("login", "stop", "--profile", "two")
    for host in ("login", "node1", "node2"):
        assert engines_on(net, host, "two") == []


@pytest.fixture
def unshared(net):
    """A profile whose directory node2 does not see."""
    profile = net.cluster_home / ".ipython" / "profile_apart"
    profile.mkdir(parents=True, exist_ok=True)
    net.ok("node2", "mount", "-t", "tmpfs", "none", profile)
    yield "apart"
    net.run("login", PCLUSTER, "stop", "--profile", "apart")
    net.ok("node2", "umount", profile)


def test_a_host_that_does_not_see_the_profile_gets_a_copy(net, unshared):
    (net.cluster_home / "work").mkdir(exist_ok=True)
    config = net.cluster_home / ".ipython/profile_apart/pcluster.yaml"
    host = {"host": "node2", "engines": 2, "directory": str(net.cluster_home / "work"), "env": {"MINE": "it's mine"}, "python": PYTHON}
    config.write_text("launchers:\n  ssh:\n    hosts: {}\n".format(json.dumps(["node1:1", host])))
    done = net.run("login", PCLUSTER, "start", "--launcher", "ssh", "--profile", unshared)
    assert done.returncode == 0, done.stderr
    copies = list(net.cluster_home.glob(".pcluster/profile_*"))
    assert len(copies) == 1
    assert stat.S_IMODE(copies[0].stat().st_mode) == 0o700
    file = copies[0] / "security/ipcontroller-engine.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key = json.loads(file.read_text())["key"]
    assert not [c for host in ("login", "node1", "node2") for c in net.pids(host).values() if key in c]
    found = {tuple(place) for place in where(net, unshared)}
    assert found <= {("node1", ""), ("node2", "it's mine")}
    (engine, *_) = [pid for pid, c in net.pids("node2").items() if "engine --supervise" in c]
    assert os.readlink("/proc/{}/cwd".format(engine)) == str(net.cluster_home / "work")
    assert json.loads(file.read_text()) == json.loads(net.client_file(unshared, net.cluster_home).with_name(file.name).read_text())
    # Remote logs are shown, and a host that cannot be queried is named.
    assert "engine 0" in net.pcluster("login", "logs", "engines", "--profile", unshared)
    logged = net.pcluster("login", "logs", "engines", "1", "-n", "1", "--profile", unshared)
    assert logged.count("\n") == 1 and "registration" in logged or "controller" in logged, logged
    net.sshd("node2", "stop")
    try:
        assert "node2" in net.run("login", PCLUSTER, "logs", "engines", "--profile", unshared).stderr
    finally:
        net.sshd("node2", "start")
    # Scaled down: removed engines are not reported as missing.
    net.pcluster("login", "engines", "stop", "1", "--profile", unshared)
    net.pcluster("login", "engines", "remove", "1", "--profile", unshared)
    listed = lambda: next(c for c in json.loads(net.pcluster("login", "list", "--json"))["clusters"] if c["profile"] == unshared)
    wait_until("two of three to be gone", lambda: [listed()["engines_started"], listed()["engines_alive"]] == [1, 1])
    assert listed()["engines"][0]["ended"] == 0
    net.pcluster("login", "scale", "2", "--host", "node2:2", "--profile", unshared)
    assert len(json.loads(net.pcluster("login", "engines", "--profile", unshared, "--json"))["engines"]) == 2
    net.pcluster("login", "scale", "1", "--profile", unshared)
    wait_until("one of two to be gone", lambda: listed()["engines_started"] == 1)
    net.pcluster("login", "stop", "--profile", unshared)
    assert not (net.cluster_home / ".pcluster").exists()
    for host in ("login", "node1", "node2"):
        assert engines_on(net, host, unshared) == []


def test_one_host_fails_and_the_other_works(net):
    net.sshd("node2", "stop")
    try:
        done = launch(net, "half", "--host", "node1:2", "--host", "node2:2")
        assert done.returncode != 0
        assert "2 of 4 engines started over ssh" in done.stderr and "no ssh server listens on that port" in done.stderr
        assert "--min-engines" in done.stderr
        assert engines_on(net, "node1", "half") == [] and engines_on(net, "login", "half") == []
        known = net.cluster_home / ".ssh/known_hosts"
        before = known.read_text()
        known.write_text(before.replace(before.split("\n")[0].split()[2], before.split("\n")[1].split()[2]))
        try:
            done = launch(net, "half", "--host", "node1:2", "--host", "node2:2", "--host", "login:2", "--min-engines", "2")
        finally:
            known.write_text(before)
        assert done.returncode == 0, done.stderr
        assert "host key has CHANGED" in done.stderr and "no ssh server listens on that port" in done.stderr
        assert {host for host, _ in where(net, "half")} == {"node1"}
    finally:
        net.sshd("node2", "start")
    # A host that cannot be queried may still have engines.
    net.sshd("node1", "stop")
    try:
        (cluster,) = [c for c in json.loads(net.pcluster("login", "list", "--json"))["clusters"] if c["profile"] == "half"]
        assert cluster["engines_alive"] is None and cluster["engines"][0]["unknown"] == 2
        assert len(json.loads(net.pcluster("login", "engines", "--profile", "half", "--json"))["engines"]) == 2
        code, err = net.fails("login", "stop", "--profile", "half")
        assert "cannot end all engines" in err and "node1" in err
    finally:
        net.sshd("node1", "start")
    net.pcluster("login", "stop", "--profile", "half")
    assert engines_on(net, "node1", "half") == []


def test_missing_programs_of_a_host_are_named(net):
    done = net.run(
        "login", PCLUSTER, "start", "--launcher", "ssh", "--profile", "lacking", "-n", "2",
        "--set", "launchers.ssh.hosts=[{host: node1, python: /no/python}, {host: node2, directory: /no/where}]",
    )
    assert "/no/python does not run on the host" in done.stderr and "/no/where does not exist on the host" in done.stderr
    done = net.run("login", PCLUSTER, "start", "--profile", "lacking", "--host", "node1:1")
    assert done.returncode == 2 and "--launcher ssh" in done.stderr
    done = launch(net, "lacking")
    assert done.returncode == 2 and "has no hosts" in done.stderr
    # With a supervisor killed (and replaced) and the controller killed, only the records list the processes to end.
    done = launch(net, "lacking", "--host", "node1:1", "--host", "node2:1")
    assert done.returncode == 0, done.stderr
    other = net.start("node1", "sleep", "300")
    (supervisor,) = [pid for pid, c in net.pids("node1").items() if "engine --supervise" in c]
    os.kill(supervisor, signal.SIGKILL)
    controllers = [pid for pid, c in net.pids("login").items() if " controller " in c and "profile_lacking" in c]
    assert len(controllers) == 2
    # A stopped engine gets no replacement supervisor.
    for pid in controllers:
        os.kill(pid, signal.SIGSTOP)
    for pid in sorted(controllers):
        os.kill(pid, signal.SIGKILL)
    assert engines_on(net, "node1", "lacking") != []
    net.pcluster("login", "stop", "--profile", "lacking")
    assert engines_on(net, "node1", "lacking") == [] and engines_on(net, "node2", "lacking") == []
    assert any(c.startswith("sleep 300") for c in net.pids("node1").values())
    other.kill()
    other.wait()


def test_engines_that_cannot_reach_the_controller(net):
    """The node has no route to the laptop, the login host has."""
    words = ["start", "--launcher", "ssh", "--host", "node1:1", "--host", "login:1", "--profile", "cut", "--python", PYTHON]
    words += ["--tunnel", "never", "--set", "controller.registration_timeout_ms=2000"]
    code, err = net.fails("laptop", *words)
    assert "on node1" in err and "no controller answered" in err and "Network is unreachable" in err
    done = net.run("laptop", PCLUSTER, *words, "--min-engines", "1")
    assert done.returncode == 0 and "1 of 2 engines" in done.stderr and "no controller answered" in done.stderr, done.stderr
    net.pcluster("laptop", "stop", "--profile", "cut")
    for host in ("laptop", "login", "node1"):
        assert engines_on(net, host, "cut") == []
