"""Tests of many and failing ipyparallel clients, beyond the package's own tests."""
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap
import threading

import pytest

ipp = pytest.importorskip("ipyparallel", reason="ipyparallel is not installed in this Python")

from conftest import Cluster, pcluster_binary, wait_until  # noqa: E402

TIMEOUT_S = 60
CLIENTS = 50
QUEUED = 10_000


@ipp.interactive  # this module cannot be imported on engines
def square(x):
    return x * x


@pytest.fixture(scope="module")
def two():
    """A cluster of two pcluster engines, with a function to connect to it."""
    running = Cluster("-n", "2")
    running.connect = lambda: ipp.Client(profile_dir=str(running.ipython_dir / "profile_default"), timeout=30)
    yield running
    running.run("stop")
    running.end()


def test_a_new_client_fetches_results_of_a_killed_one(two):
    script = """
        import json, sys, time
        import ipyparallel as ipp

        def slow_square(x):
            import time
            time.sleep(0.1)
            return x * x

        client = ipp.Client(profile_dir=sys.argv[1], timeout=30)
        result = client.load_balanced_view().map_async(slow_square, range(30))
        next(iter(result))
        print(json.dumps(result.msg_ids), flush=True)
        time.sleep(600)
    """
    words = [sys.executable, "-c", textwrap.dedent(script), str(two.ipython_dir / "profile_default")]
    first = subprocess.Popen(words, env=two.environment, stdout=subprocess.PIPE, universal_newlines=True)
    try:
        msg_ids = json.loads(first.stdout.readline())
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    with two.connect() as client:
        result = client.get_result(msg_ids, owner=False)
        # ipyparallel's map may pack several inputs into one task.
        values = [value for part in result.get(timeout=TIMEOUT_S) for value in (part if isinstance(part, list) else [part])]
        assert values == [x * x for x in range(30)]
        assert client.result_status(msg_ids)["pending"] == []


def test_fifty_clients_at_once(two):
    values, failures = {}, []
    with two.connect() as client:
        # The package's lazy imports at its first use are not thread-safe.
        client[:].apply_sync(square, 2)

    def work(number):
        try:
            with two.connect() as client:
                views = client.load_balanced_view(), client[:]
                values[number] = views[0].apply(square, number).get(TIMEOUT_S), views[1].apply(square, number).get(TIMEOUT_S)
        except Exception as error:
            failures.append((number, repr(error)))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * TIMEOUT_S)
    assert failures == []
    assert values == {number: (number**2, [number**2] * 2) for number in range(CLIENTS)}


def test_an_engine_is_restarted_under_a_view(two):
    with two.connect() as client:
        view = client.load_balanced_view()
        old = client.ids[-1]
        pids = client[:].apply(os.getppid).get_dict()  # the engine is the parent of its Python
        os.kill(pids[old], signal.SIGKILL)
        # Its supervisor starts another engine with a new id.
        wait_until("another engine", lambda: len(client.ids) == 2 and old not in client.ids, TIMEOUT_S)
        assert view.map(square, range(20), block=True) == [x * x for x in range(20)]
        now = client[:].apply(os.getppid).get_dict()
        assert sorted(now) == client.ids and pids[old] not in now.values()
        with pytest.raises(IndexError):
            client[old]


def parents(running, program):
    """Maps each process of the cluster that runs this program to its parent, which is its supervisor."""
    mark = "IPYTHONDIR={}".format(running.ipython_dir).encode()
    found = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            state, parent = (folder / "stat").read_text().rsplit(")", 1)[1].split()[:2]
            is_it = program in words and b"--supervise" not in words and mark in (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if is_it and state != "Z":
            found[int(folder.name)] = int(parent)
    return found


def is_gone(pid):
    try:
        return pathlib.Path("/proc/{}/stat".format(pid)).read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def test_a_killed_ipengine_is_replaced_and_a_removed_one_is_not():
    running = Cluster("-n", "2", "--engine", "ipengine")
    try:
        with ipp.Client(profile_dir=str(running.ipython_dir / "profile_default"), timeout=30) as client:
            before = client.ids
            engines = parents(running, b"ipyparallel.engine")
            assert len(engines) == 2
            killed = min(engines)
            os.kill(killed, signal.SIGKILL)
            wait_until("another engine", lambda: len(client.ids) == 2 and client.ids != before, TIMEOUT_S)
            assert client[:].apply(square, 3).get(TIMEOUT_S) == [9, 9]
            engines = parents(running, b"ipyparallel.engine")
            assert len(engines) == 2 and killed not in engines
            running.run("engines", "remove", "1")
            wait_until("one engine", lambda: len(parents(running, b"ipyparallel.engine")) == 1, TIMEOUT_S)
            (gone,) = set(engines) - set(parents(running, b"ipyparallel.engine"))
            wait_until("the end of its supervisor", lambda: is_gone(engines[gone]), TIMEOUT_S)
            wait_until("the client to notice its end", lambda: len(client.ids) == 1, TIMEOUT_S)
        left = parents(running, b"ipyparallel.engine")
        running.run("stop")
        wait_until("the end of all", lambda: all(is_gone(pid) for pid in [*left, *left.values()]), TIMEOUT_S)
    finally:
        running.end()


def test_ten_thousand_tasks_are_queued_while_another_client_queries(two):
    with two.connect() as busy, two.connect() as other:
        begun = threading.Event()
        queued = []

        def queue():
            view = busy.load_balanced_view()
            for number in range(QUEUED):
                queued.append(view.apply(square, number))
                begun.set()

        thread = threading.Thread(target=queue)
        thread.start()
        assert begun.wait(TIMEOUT_S)
        queries = 0
        while thread.is_alive() or queries < 3:
            status = other.queue_status()
            assert set(status) == {"unassigned"} | set(other.ids)
            sent = queued[-1].msg_ids[0]
            records = other.db_query({"msg_id": {"$in": [sent]}}, keys=["msg_id", "completed"])
            assert [record["msg_id"] for record in records] in ([], [sent])
            queries += 1
        thread.join()
        assert [result.get(4 * TIMEOUT_S) for result in queued] == [number**2 for number in range(QUEUED)]
        assert other.queue_status()["unassigned"] == 0


def test_ipengine_pcluster_engine_and_clients_work_without_curve(tmp_path):
    """For clients whose ZeroMQ has no CURVE; started like by ipyparallel's launchers."""
    profile = tmp_path / "profile_plain"
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PCLUSTER_", "IPP_"))}
    environment.update(IPYTHONDIR=str(tmp_path), IPP_PROFILE_DIR=str(profile), IPP_CLUSTER_ID="c")
    log = open(tmp_path / "log", "w")
    commands = [
        [pcluster_binary(), "controller", "--no-curve", "--ping=500", "--log-level=20", "--dictdb"],
        [pcluster_binary(), "engine", "--python", sys.executable, "--log-level=WARN"],
        [sys.executable, "-m", "ipyparallel.engine"],
    ]
    running = []
    try:
        for command in commands:
            running.append(subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log))
            wait_until("the connection file", (profile / "security" / "ipcontroller-c-client.json").exists, TIMEOUT_S)
        file = json.loads((profile / "security" / "ipcontroller-c-client.json").read_text())
        assert file["curve_serverkey"] is None and file["key"]
        with ipp.Client(profile_dir=str(profile), cluster_id="c", timeout=30) as client:
            client.wait_for_engines(2, timeout=TIMEOUT_S)
            assert client[:].apply(square, 3).get(TIMEOUT_S) == [9, 9]
            assert client.load_balanced_view().map(square, range(8), block=True) == [x * x for x in range(8)]
            client.shutdown(hub=True)
        for process in running:
            process.wait(TIMEOUT_S)
        assert "dictdb" in (tmp_path / "log").read_text().lower(), "no warning that the option has no effect"
    finally:
        for process in running:
            process.kill()
            process.wait()
        log.close()
