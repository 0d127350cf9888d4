"""From a laptop, over ssh, to clusters behind a login host. See conftest.py for the hosts."""
import json
import os
import pathlib
import re
import signal
import stat
import subprocess
import textwrap
import time

from conftest import PCLUSTER, PYTHON, wait_until

# Appends its input to a file, to count the runs of each.
RECORDER = """
import os, time

def recorded(n, file, seconds):
    with open(file, "ab", 0) as f:
        f.write(b"%d\\n" % n)
    time.sleep(seconds)
    return n * n
"""


class Recorded:
    """A map on the laptop, slow enough for something to happen in its middle."""

    def __init__(self, net, profile, name, n=120, seconds=0.08):
        self.net, self.n = net, n
        self.ran = net.state / ("ran-" + name)
        self.ran.write_text("")
        (net.laptop_home / "recorder.py").write_text(RECORDER)
        inputs = net.laptop_home / ("inputs-" + name)
        inputs.write_text("".join(json.dumps([i, str(self.ran), seconds]) + "\n" for i in range(n)))
        self.running = net.start("laptop", PCLUSTER, "map", "--profile", profile, "recorder.py:recorded", inputs, "--jsonl")
        wait_until("the first tasks", lambda: self.count() >= 4)

    def count(self):
        return len(self.ran.read_text().split())

    def finish(self, timeout=100):
        """All results, in order, and each task run once."""
        out, err = self.running.communicate(timeout=timeout)
        assert self.running.returncode == 0, err + self.net.logs()
        assert [int(line) for line in out.split()] == [n * n for n in range(self.n)]
        assert sorted(map(int, self.ran.read_text().split())) == list(range(self.n)), "each task ran once"


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_both_clients_reach_a_controller_on_a_node(net, on_node):
    reached = subprocess.run([str(net.state / "on"), "laptop", "timeout", "1", "bash", "-c", "exec 3<>/dev/tcp/10.214.2.11/22"])
    assert reached.returncode != 0, "the laptop must not reach the node itself"
    output = json.loads(net.pcluster("laptop", "connect", "login", "--profile", on_node, "--json"))
    assert (output["controller_host"], output["engines"], output["reused"]) == ("node1", 2, False)
    file = net.client_file(on_node)
    assert mode(file) == 0o600 and mode(file.parent) == 0o700
    assert not file.with_name("ipcontroller-engine.json").exists()

    assert net.pcluster("laptop", "map", "--profile", on_node, "math:sqrt", "--range", "0..4").split() == ["0.0", "1.0", "1.4142135623730951", "1.7320508075688772"]
    assert "process" in net.pcluster("laptop", "status", "--profile", on_node)
    results = json.loads(net.pcluster("laptop", "results", "--profile", on_node, "--json"))
    assert results["maps"]
    code = """
    import ipyparallel as ipp, socket
    client = ipp.Client(profile="hpc", timeout=20)
    assert client.ids == [0, 1]
    assert client[:].apply_sync(lambda: __import__("socket").gethostname()) == ["node1"] * 2
    assert client.load_balanced_view().map_sync(lambda n: n * n, range(20)) == [n * n for n in range(20)]
    client[:].push({"data": b"x" * 10_000_000}, block=True)
    assert client[0].pull("data", block=True) == b"x" * 10_000_000
    client.close()
    """
    net.python("laptop", textwrap.dedent(code))

    # A second one uses the first one's tunnel.
    again = json.loads(net.pcluster("laptop", "connect", "login", "--profile", on_node, "--json"))
    assert again["reused"] and again["tunnel_pid"] == output["tunnel_pid"]
    code, err = net.fails("laptop", "connect", "node1", "--profile", on_node)
    assert code == 4 and "connected to login already" in err and "pcluster disconnect --profile hpc" in err
    code, err = net.fails("laptop", "start", "-n", "1", "--profile", on_node)
    assert code == 4 and "is connected to login, and runs there" in err

    key = json.loads(file.read_text())["key"]
    shown = net.pcluster("laptop", "connection", "show", "--profile", on_node)
    assert "connected" in shown and "to login" in shown and key not in shown
    state = (net.laptop_home / ".ipython/profile_hpc/pid/tunnel.json").read_text()
    assert key not in state and key not in net.logs()
    assert not [command for command in net.pids("laptop").values() if key in command]
    table = net.pcluster("laptop", "list")
    assert re.search(r"^hpc .* connected .* node1 ", table, re.M), table

    net.pcluster("laptop", "disconnect", "--profile", on_node)
    assert not file.exists()
    code, err = net.fails("laptop", "map", "--profile", on_node, "math:sqrt", "--range", "0..4")
    assert code == 3 and "no cluster is running" in err
    # The cluster did not notice.
    assert json.loads(net.pcluster("node1", "status", "--profile", on_node, "--json"))["engines"]


def test_a_controller_on_the_login_hosts_own_loopback(net):
    net.pcluster("login", "start", "-n", "1", "--profile", "own", "--python", PYTHON)
    # It has another name here, but is the only remote cluster of the given name.
    net.pcluster("laptop", "connect", "login", "--profile", "mine", "--remote-profile", "own")
    assert net.pcluster("laptop", "map", "--profile", "mine", "math:sqrt", "--range", "4..5").split() == ["2.0"]
    # Commands about its processes are run by the remote pcluster.
    code, err = net.fails("laptop", "logs", "--profile", "mine")
    assert code == 5 and "pcluster install login" in err
    net.ok("login", "sh", "-c", "mkdir -p .local/bin && ln -sf {} .local/bin/pcluster".format(PCLUSTER))
    logged = net.pcluster("laptop", "logs", "controller", "--profile", "mine")
    assert "profile_own" in logged and "Welcome" not in logged
    net.pcluster("laptop", "engines", "add", "1", "--profile", "mine", "--python", PYTHON)
    assert len(json.loads(net.pcluster("laptop", "engines", "--profile", "mine", "--json"))["engines"]) == 2
    net.pcluster("laptop", "stop", "--profile", "mine")
    assert net.tunnel("mine") is None
    code, err = net.fails("login", "status", "--profile", "own")
    assert code == 3
    net.ok("login", "rm", ".local/bin/pcluster")


def test_a_loopback_behind_the_login_host_is_reached_through_it(net):
    net.pcluster("node2", "start", "-n", "1", "--profile", "deep", "--python", PYTHON)
    code, err = net.fails("laptop", "connect", "login", "--profile", "deep", "--remote-profile", "deep")
    assert code == 4 and "runs on node2 and listens only there" in err and "ProxyJump" in err
    # As in the hint; the jump is in the user's ssh configuration.
    net.pcluster("laptop", "connect", "node2", "--profile", "deep")
    assert net.pcluster("laptop", "map", "--profile", "deep", "math:sqrt", "--range", "9..10").split() == ["3.0"]
    net.pcluster("laptop", "disconnect", "--profile", "deep")
    net.pcluster("node2", "stop", "--profile", "deep")
    code, err = net.fails("laptop", "connect", "login", "--profile", "deep", "--remote-profile", "deep")
    assert code == 3 and 'no cluster is running on login in profile "deep"' in err


def test_a_cluster_started_from_the_laptop(net):
    home = net.cluster_home
    (home / ".local/bin").mkdir(parents=True, exist_ok=True)
    # An installed program of another version is replaced.
    old = home / ".local/bin/pcluster"
    old.write_text("#!/bin/sh\necho pcluster 0.0.1\n")
    old.chmod(0o755)
    code, err = net.fails("laptop", "start", "--on", "login", "--no-install", "-n", "2", "--profile", "far")
    assert "is version 0.0.1" in err and "pcluster install login" in err
    done = net.run("laptop", PCLUSTER, "start", "--on", "login", "--launcher", "local", "-n", "2", "--profile", "far", "--python", PYTHON)
    assert done.returncode == 0, done.stderr + net.logs()
    assert "copied this pcluster" in done.stderr and "started on login: a controller and 2 engines" in done.stderr
    assert net.pcluster("laptop", "map", "--profile", "far", "math:sqrt", "--range", "4..5").split() == ["2.0"]
    # Remote errors are shown unchanged.
    code, err = net.fails("laptop", "start", "--on", "login", "-n", "1", "--profile", "never", "--launcher", "nosuch")
    assert code == 2 and "nosuch" in err and "on login" in err
    # The same program is installed now.
    assert "already" in net.run("laptop", PCLUSTER, "install", "login").stderr
    net.pcluster("laptop", "stop", "--profile", "far")
    assert net.tunnel("far") is None
    assert not [c for c in net.pids("login").values() if "profile_far" in c]


def test_no_binary_is_copied_to_another_architecture(net):
    fake = net.cluster_home / "fake"
    fake.mkdir()
    (fake / "uname").write_text('#!/bin/sh\n[ "$1" = -m ] && echo s390x || exec /usr/bin/uname "$@"\n')
    (fake / "uname").chmod(0o755)
    rc = net.cluster_home / ".bashrc"
    before = rc.read_text()
    rc.write_text(before + "PATH=$HOME/fake:$PATH\n")
    installed = net.cluster_home / ".local/bin/pcluster"
    if installed.exists():
        installed.unlink()
    try:
        code, err = net.fails("laptop", "install", "login")
        assert code == 5 and "s390x" in err
        assert not installed.exists() and not list(installed.parent.glob("*"))
    finally:
        rc.write_text(before)


def test_a_short_disconnect_loses_no_task_and_repeats_none(net, connected):
    work = Recorded(net, connected, "short")
    net.link("login", "down")
    time.sleep(4)
    net.link("login", "up")
    work.finish()
    assert net.tunnel(connected)["reconnects"] == 0, "the same connection went on"


def test_a_long_disconnect_is_recovered(net, connected):
    work = Recorded(net, connected, "long", n=150)
    net.link("login", "down")
    wait_until("the tunnel to be down", lambda: net.tunnel(connected)["phase"] == "down")
    assert "lost" in net.run("laptop", PCLUSTER, "list").stderr
    net.link("login", "up")
    work.finish()
    assert net.tunnel(connected)["phase"] == "up"


def test_sshd_killed_and_restarted_under_a_map(net, connected):
    ports = net.tunnel(connected)["ports"]
    work = Recorded(net, connected, "sshd")
    net.sshd("login", "stop")
    wait_until("the tunnel to be down", lambda: net.tunnel(connected)["phase"] == "down")
    net.sshd("login", "start")
    work.finish()
    tunnel = wait_until("the tunnel to be up", lambda: (lambda t: t if t["phase"] == "up" else None)(net.tunnel(connected)))
    assert tunnel["reconnects"] >= 1 and tunnel["ports"] == ports


def test_the_login_host_is_rebooted_under_a_map(net, connected):
    work = Recorded(net, connected, "reboot")
    net.reboot("login")
    work.finish()
    wait_until("the tunnel to be up", lambda: net.tunnel(connected)["phase"] == "up")


def test_a_killed_controller_is_found_again(net, connected):
    work = Recorded(net, connected, "kill")
    file = json.loads(net.client_file(connected, net.cluster_home).read_text())
    os.kill(file["pcluster"]["pid"], signal.SIGKILL)
    work.finish()


def test_a_restarted_controller_is_found_through_the_tunnel(net):
    net.pcluster("login", "start", "-n", "1", "--profile", "again", "--python", PYTHON)
    net.pcluster("laptop", "connect", "login", "--profile", "again")
    before = json.loads(net.client_file("again").read_text())
    net.pcluster("login", "stop", "--profile", "again")
    # The file cannot be mistaken for one of an established tunnel.
    wait_until("the connection file to go", lambda: not net.client_file("again").exists())
    wait_until("the tunnel to wait", lambda: net.tunnel("again")["phase"] == "waiting")
    code, err = net.fails("laptop", "map", "--profile", "again", "math:sqrt", "--range", "4..5")
    assert code in (3, 4) and "no cluster is reached there" in err
    net.pcluster("login", "start", "-n", "1", "--profile", "again", "--python", PYTHON)
    wait_until("the connection file to come back", net.client_file("again").exists)
    after = json.loads(net.client_file("again").read_text())
    assert after["key"] != before["key"] and after["mux"] == before["mux"]
    assert net.pcluster("laptop", "map", "--profile", "again", "math:sqrt", "--range", "4..5").split() == ["2.0"]
    net.pcluster("laptop", "disconnect", "--profile", "again")
    net.pcluster("login", "stop", "--profile", "again")


def test_unreachable_hosts_are_reported_with_the_output_of_ssh(net, on_node):
    """Each with an exit code, and no files remain."""
    def refused(*words):
        code, err = net.fails("laptop", "connect", "--profile", "none", *words)
        assert code in (2, 4), err
        return err

    known = net.laptop_home / ".ssh/known_hosts"
    good = known.read_text()
    try:
        node1 = next(line for line in good.splitlines() if line.startswith("node1 ")).split(" ", 1)[1]
        known.write_text("login {}\n".format(node1))
        err = refused("login")
        assert "host key has CHANGED" in err and "REMOTE HOST IDENTIFICATION HAS CHANGED" in err and "ssh-keygen -R login" in err
        known.write_text("")
        err = refused("login")
        assert "host key is unknown" in err and "Host key verification failed" in err
        assert known.read_text() == "", "nothing was accepted without consent"
    finally:
        known.write_text(good)
    assert "unknown host" in refused("nowhere.invalid")
    assert "like an option" in refused("--", "-oProxyCommand=reboot")
    err = refused("ssh://login:2299")
    assert "no ssh server listens on that port" in err

    # One that accepts, and then sends nothing.
    silent = net.start("login", PYTHON, "-c", "import socket, time; s = socket.create_server(('', 2298)); print('up', flush=True); time.sleep(600)")
    try:
        assert silent.stdout.readline() == "up\n"
        known.write_text(good + "[login]:2298 " + good.splitlines()[0].split(" ", 1)[1] + "\n")
        assert "does not answer" in refused("ssh://login:2298")
    finally:
        known.write_text(good)
        silent.kill()
        silent.communicate()

    # A host that requires a password, which is never asked for.
    config = net.state / "etc/password.sshd_config"
    config.write_text(
        "Port 2297\nHostKey {0}/etc/login.key\nPidFile none\nAuthorizedKeysFile none\nUsePAM no\nPermitRootLogin yes\nPasswordAuthentication yes\n".format(net.state)
    )
    asking = net.start("login", "/usr/sbin/sshd", "-D", "-f", config)
    try:
        login = good.splitlines()[0].split(" ", 1)[1]
        known.write_text(good + "[login]:2297 " + login + "\n")
        err = wait_until("its sshd", lambda: (lambda e: e if "no ssh server" not in e else None)(refused("ssh://login:2297")))
        assert "password required" in err and "ssh-copy-id" in err
    finally:
        known.write_text(good)
        asking.kill()
        asking.communicate()
    assert not net.pids("laptop"), net.pids("laptop")
    assert net.tunnel("none") is None and not net.client_file("none").exists()


def test_a_killed_tunnel_is_restarted_and_a_dead_one_is_not_used(net, connected):
    file = net.client_file(connected)
    before = json.loads(file.read_text())
    os.kill(net.tunnel(connected)["pid"], signal.SIGKILL)
    wait_until("another tunnel process", lambda: file.exists() and json.loads(file.read_text())["pcluster"]["pid"] != before["pcluster"]["pid"])
    after = json.loads(file.read_text())
    assert after["mux"] == before["mux"]
    assert net.pcluster("laptop", "map", "--profile", connected, "math:sqrt", "--range", "4..5").split() == ["2.0"]

    # With what keeps it running: nothing is left but files and an ssh process.
    state = json.loads((net.laptop_home / ".ipython/profile_hpc/pid/tunnel.json").read_text())
    for who in ("supervisor", "daemon"):
        os.kill(state[who]["pid"], signal.SIGKILL)
    wait_until("their end", lambda: not any("tunnel" in command and "profile_hpc" in command for command in net.pids("laptop").values()))
    code, err = net.fails("laptop", "map", "--profile", connected, "math:sqrt", "--range", "4..5")
    assert code == 3 and "gone" in err
    # Meanwhile another takes one of its ports.
    taker = net.start("laptop", PYTHON, "-c", "import socket, time; s = socket.create_server(('127.0.0.1', {})); print('up', flush=True); time.sleep(600)".format(after["mux"]))
    try:
        assert taker.stdout.readline() == "up\n"
        net.pcluster("laptop", "connect", "login", "--profile", connected)
        restored = json.loads(file.read_text())
        assert restored["mux"] != after["mux"] and restored["task"] == after["task"]
        net.python("laptop", "import ipyparallel as ipp; c = ipp.Client(profile='hpc'); assert c[0].apply_sync(abs, -3) == 3")
    finally:
        taker.kill()
        taker.communicate()
    # The ssh process of the dead one is gone, too.
    assert len([c for c in net.pids("laptop").values() if c.startswith("ssh")]) == 1


def test_twenty_cycles_leave_no_processes_or_files(net, on_node):
    def files():
        return sorted(str(path) for path in net.laptop_home.rglob("*") if ".ssh" not in path.parts and path.suffix != ".py")

    net.pcluster("laptop", "connect", "login", "--profile", "cycle", "--remote-profile", on_node)
    net.pcluster("laptop", "disconnect", "--profile", "cycle")
    before = files()
    for _ in range(20):
        net.pcluster("laptop", "connect", "login", "--profile", "cycle", "--remote-profile", on_node)
        net.pcluster("laptop", "disconnect", "--profile", "cycle")
    assert files() == before
    assert not net.pids("laptop"), net.pids("laptop")
    assert not list(pathlib.Path("/tmp").glob("pcluster-0/*"))
    sockets = net.ok("laptop", "ss", "-Hltnx", "state", "listening")
    assert "pcluster" not in sockets and "127.0.0.1" not in sockets, sockets
    wait_until("sshd's processes of the connections to end", lambda: not [c for c in net.pids("login").values() if c.startswith("sshd: root")])


SNIFFER = """
import signal, socket, sys
found, total = {}, 0
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 20)
s.settimeout(0.2)
ended = []
signal.signal(signal.SIGTERM, lambda *a: ended.append(1))
print("up", flush=True)
while True:
    try:
        packet, where = s.recvfrom(1 << 17)
    except socket.timeout:
        if ended:
            break
        continue
    if where[0] == "lo":
        continue
    total += len(packet)
    for marker in sys.argv[1:]:
        if marker.encode() in packet:
            found[marker] = found.get(marker, 0) + 1
print(total, sorted(found), flush=True)
"""


def heard_on_the_wire(net, markers, work):
    """What a listener on login's network devices reads: bytes in all, and which of the markers."""
    sniffer = net.start("login", PYTHON, "-c", SNIFFER, *markers)
    assert sniffer.stdout.readline() == "up\n"
    work()
    pid = next(pid for pid, command in net.pids("login").items() if "AF_PACKET" in command)
    os.kill(pid, signal.SIGTERM)
    total, found = sniffer.communicate(timeout=30)[0].split(" ", 1)
    return int(total), eval(found)


def test_nothing_is_readable_on_the_wire(net, connected):
    (net.laptop_home / "secret.py").write_text("def secret(word):\n    return 'pub' + 'licresult' + word[:3]\n")
    (net.laptop_home / "words").write_text("argumentofmine\n" * 50)
    (net.cluster_home / "secret.py").write_text((net.laptop_home / "secret.py").read_text())
    (net.cluster_home / "words").write_text("argumentofmine\n" * 50)
    markers = ["argumentofmine", "publicresultarg", "def secret"]

    def work(host, profile):
        out = net.pcluster(host, "map", "--profile", profile, "secret.py:secret", "words")
        assert out.count("publicresultarg") == 50

    total, found = heard_on_the_wire(net, markers, lambda: work("laptop", connected))
    assert total > 20_000 and found == [], (total, found)
    # Without a tunnel, from login to the node.
    total, found = heard_on_the_wire(net, markers, lambda: work("login", connected))
    assert total > 5_000 and found == [], (total, found)
    # The listener does see unencrypted data.
    net.pcluster("node2", "start", "-n", "1", "--profile", "plain", "--ip", "0.0.0.0", "--set", "controller.curve=false", "--python", PYTHON)
    total, found = heard_on_the_wire(net, markers, lambda: work("login", "plain"))
    net.pcluster("node2", "stop", "--profile", "plain")
    assert "argumentofmine" in found, (total, found)


def test_copied_connection_files(net, on_node):
    net.ok("login", "sh", "-c", "rm -f carried.json")
    output = net.run("node1", PCLUSTER, "connection", "export", "carried.json", "--profile", on_node, "--ssh", "login")
    assert output.returncode == 0, output.stderr
    carried = net.cluster_home / "carried.json"
    assert mode(carried) == 0o600
    code, err = net.fails("node1", "connection", "export", "carried.json", "--profile", on_node)
    assert code == 5 and "carried.json" in err
    net.ok("laptop", "scp", "-q", "login:carried.json", "carried.json")
    assert "carried" not in net.pcluster("laptop", "list")
    code, err = net.fails("laptop", "connection", "import", "carried.json", "--engine", "--profile", "hand")
    assert code == 2 and "without --engine" in err
    net.pcluster("laptop", "connection", "import", "carried.json", "--profile", "hand")
    assert mode(net.client_file("hand")) == 0o600
    # pcluster's own commands do not open tunnels on their own, and say so.
    code, err = net.fails("laptop", "status", "--profile", "hand")
    assert code == 4 and "pcluster connect login" in err, err
    exported = net.run("node1", PCLUSTER, "connection", "export", "-", "--profile", on_node).stdout
    assert json.loads(exported)["key"] == json.loads(carried.read_text())["key"]
    net.client_file("hand").unlink()


def test_ipyparallels_own_tunnels(net):
    """The file names the ssh server, or the caller does. Without CURVE: ipyparallel 9.2 gives it to no socket that it tunnels
    but the first (client.py, connect_socket)."""
    net.pcluster("node1", "start", "-n", "1", "--profile", "old", "--ip", "0.0.0.0", "--set", "controller.curve=false", "--python", PYTHON)
    net.pcluster("node1", "connection", "export", "old.json", "--profile", "old", "--ssh", "login")
    net.ok("laptop", "scp", "-q", "login:old.json", "old.json")
    # It runs `ssh -f` on a terminal, where that may be hung up before it has left it: here it leaves it at once.
    wrapped = net.laptop_home / "wrapped"
    wrapped.mkdir()
    (wrapped / "ssh").write_text('#!/bin/sh\nexec setsid -w /usr/bin/ssh "$@"\n')
    (wrapped / "ssh").chmod(0o755)
    code = """
    import ipyparallel as ipp
    for more in [{}, {"sshserver": "login"}]:
        client = ipp.Client("old.json", timeout=30, **more)
        assert client[:].apply_async(lambda: __import__("socket").gethostname()).get(timeout=30) == ["node1"]
        client.close()
    """
    net.ok("laptop", "env", "PATH={}:/usr/bin:/bin".format(wrapped), PYTHON, "-c", textwrap.dedent(code))
    for pid, command in net.pids("laptop").items():
        if "ssh -f" in command:
            os.kill(pid, signal.SIGKILL)
    net.pcluster("node1", "stop", "--profile", "old")


def test_the_users_own_shared_connection_is_used_and_left_alone(net, on_node):
    """As with a second factor: who is logged in need not log in again."""
    config = net.laptop_home / ".ssh/config"
    before = config.read_text()
    config.write_text("Host login\n    ControlMaster auto\n    ControlPath ~/.ssh/cm-%C\n    ControlPersist 600\n" + before)
    try:
        net.ok("laptop", "ssh", "login", "true")
        masters = {pid for pid, command in net.pids("laptop").items() if command.startswith("ssh")}
        assert len(masters) == 1
        net.pcluster("laptop", "connect", "login", "--profile", "shared", "--remote-profile", on_node)
        assert net.pcluster("laptop", "map", "--profile", "shared", "math:sqrt", "--range", "4..5").split() == ["2.0"]
        assert {pid for pid, command in net.pids("laptop").items() if command.startswith("ssh")} == masters
        net.pcluster("laptop", "disconnect", "--profile", "shared")
        assert {pid for pid in net.pids("laptop")} == masters, "it is still the user's"
        assert not list(pathlib.Path("/tmp").glob("pcluster-0/*"))
    finally:
        net.run("laptop", "ssh", "-O", "exit", "login")
        config.write_text(before)
