"""Engines that open a tunnel to the controller themselves, through the ssh server in their connection file. See conftest.py for
the hosts."""
import json
import os
import pathlib
import signal

import pytest

from conftest import PCLUSTER, PYTHON, wait_until
from test_remote import RECORDER


@pytest.fixture
def own(net):
    """A controller that only login itself reaches, and two engines on nodes, started as a batch job would start them."""
    net.pcluster("login", "start", "-n", "0", "--profile", "through", "--set", "controller.engine_ssh=login")
    file = net.client_file("through", net.cluster_home).with_name("ipcontroller-engine.json")
    written = json.loads(file.read_text())
    assert (written["ssh"], written["interface"]) == ("login", "tcp://127.0.0.1")
    logs = [net.state / "through-{}.log".format(node) for node in ("node1", "node2")]
    engines = [
        net.start(node, PCLUSTER, "engine", "--supervise", "--file", file, "--python", PYTHON, stdout=log.open("w"), stderr=log.open("a"))
        for node, log in zip(("node1", "node2"), logs)
    ]
    yield logs
    net.pcluster("login", "stop", "--profile", "through")
    for engine in engines:
        assert engine.wait(timeout=30) == 0, [log.read_text() for log in logs]
    for node in ("node1", "node2"):
        left = lambda: [c for c in net.pids(node).values() if c.startswith("ssh ") or "profile_through" in c]
        wait_until("nothing to be left on " + node, lambda: not left())
    assert not list(pathlib.Path("/tmp").glob("pcluster-0/*"))


def engines(net):
    output = json.loads(net.pcluster("login", "engines", "--profile", "through", "--json"))["engines"]
    return sorted(engine["host"] for engine in output if engine["state"] not in ("silent", "leaving"))


def test_engines_tunnel_to_the_controller_themselves(net, own):
    wait_until("both engines", lambda: engines(net) == ["node1", "node2"])
    assert "the controller at 127.0.0.1:" in own[0].read_text()
    (net.cluster_home / "recorder.py").write_text(RECORDER)
    ran = net.state / "ran-through"
    ran.write_text("")
    inputs = net.cluster_home / "inputs-through"
    inputs.write_text("".join(json.dumps([i, str(ran), 0.1]) + "\n" for i in range(80)))
    running = net.start("login", PCLUSTER, "map", "--profile", "through", "recorder.py:recorded", inputs, "--jsonl")
    wait_until("the first tasks", lambda: len(ran.read_text().split()) >= 4)
    # All connections of login end, and can be made again at once.
    net.sshd("login", "stop")
    net.sshd("login", "start")
    out, err = running.communicate(timeout=100)
    assert running.returncode == 0, err
    assert [int(line) for line in out.split()] == [n * n for n in range(80)]
    assert sorted(map(int, ran.read_text().split())) == list(range(80)), "each task ran once"
    assert "leads to the controller at 127.0.0.1 again" in own[0].read_text()
    # The next engine removes the files of a killed one.
    (engine,) = [pid for pid, c in net.pids("node1").items() if " engine " in c and "profile_through" in c and "--supervise" not in c]
    (left,) = [pid for pid, c in net.pids("node1").items() if c.startswith("ssh ")]
    os.kill(engine, signal.SIGKILL)
    wait_until("another engine", lambda: own[0].read_text().count("through login; a direct connection failed") == 2)
    assert left not in net.pids("node1")
    assert len([c for c in net.pids("node1").values() if c.startswith("ssh ")]) == 1
    wait_until("both engines", lambda: engines(net) == ["node1", "node2"])


def test_an_unusable_ssh_server_is_named(net):
    net.pcluster("login", "start", "-n", "0", "--profile", "nowhere", "--set", "controller.engine_ssh=root@nowhere.invalid", "--set", "controller.registration_timeout_ms=2000")
    try:
        file = net.client_file("nowhere", net.cluster_home).with_name("ipcontroller-engine.json")
        code, err = net.fails("node1", "engine", "--file", file, "--python", PYTHON, "--set", "controller.registration_timeout_ms=2000")
        assert "no controller answered" in err and "through root@nowhere.invalid" in err and "unknown host" in err, err
    finally:
        net.pcluster("login", "stop", "--profile", "nowhere")
