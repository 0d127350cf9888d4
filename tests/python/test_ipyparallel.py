"""Tests of an unmodified ipyparallel client with pcluster's controller and both kinds of engines.

Functions are marked `interactive`, as if defined in a notebook: engines cannot import this file.
"""
import json
import os
import signal
import threading
import time

import pytest

ipp = pytest.importorskip("ipyparallel", reason="ipyparallel is not installed in this Python")

from conftest import Cluster, wait_until  # noqa: E402
from ipyparallel import interactive  # noqa: E402

TIMEOUT_S = 60


@pytest.fixture
def everyone(client):
    return client[:]


@pytest.fixture
def balanced(client):
    return client.load_balanced_view()


def test_ids(client):
    assert client.ids == [0, 1]
    assert len(client) == 2


def test_apply_sync(everyone):
    assert everyone.apply_sync(interactive(lambda a, b=0: a + b), 3, b=4) == [7, 7]


def test_engines_are_different_processes(everyone):
    pids = everyone.apply_sync(os.getpid)
    assert len(set(pids)) == 2 and os.getpid() not in pids


def test_one_engine(client):
    assert client[1].apply_sync(interactive(lambda: "here")) == "here"


def test_execute_with_output(client, everyone):
    result = everyone.execute("import sys; print('printed on', 6 * 7); print('on stderr', file=sys.stderr)")
    result.get(TIMEOUT_S)
    result.wait_for_output(TIMEOUT_S)
    assert result.stdout == ["printed on 42\n"] * 2
    assert result.stderr == ["on stderr\n"] * 2


def test_execute_shares_the_namespace_of_push_and_pull(everyone):
    everyone.push({"a": 20, "b": [1, "two"]}, block=True)
    everyone.execute("c = a + 1", block=True)
    assert everyone.pull("c", block=True) == [21, 21]
    assert everyone.pull(("a", "b"), block=True) == [[20, [1, "two"]]] * 2
    everyone["d"] = {"x": 1}
    assert everyone["d"] == [{"x": 1}] * 2


def test_functions_see_the_namespace(everyone):
    everyone.push({"offset": 100}, block=True)
    assert everyone.apply_sync(interactive(lambda: offset + 1)) == [101, 101]  # noqa: F821


def test_scatter_and_gather(everyone):
    everyone.scatter("part", list(range(10)), block=True)
    assert [len(part) for part in everyone["part"]] == [5, 5]
    everyone.execute("squares = [n * n for n in part]", block=True)
    assert everyone.gather("squares", block=True) == [n * n for n in range(10)]


def test_direct_map(everyone):
    assert everyone.map_sync(interactive(lambda n: n * n), range(17)) == [n * n for n in range(17)]


def test_numpy_arrays_are_sent_as_buffers(everyone):
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(300_000, dtype="float64").reshape(300, 1000)
    everyone.push({"array": array}, block=True)
    for back in everyone.pull("array", block=True):
        assert back.dtype == array.dtype and (back == array).all()
    assert everyone.apply_sync(interactive(lambda a: float(a.sum())), array) == [float(array.sum())] * 2


def test_balanced_map(balanced):
    assert balanced.map(interactive(lambda n: n + 1), range(50)).get(TIMEOUT_S) == list(range(1, 51))


def test_balanced_map_uses_both_engines(balanced):
    @interactive
    def engine_of(_):
        import os
        import time

        time.sleep(0.05)
        return os.getpid()

    assert len(set(balanced.map(engine_of, range(20)).get(TIMEOUT_S))) == 2


def test_unordered_balanced_map_returns_all_results(balanced):
    results = balanced.map(interactive(lambda n: n * 2), range(30), ordered=False)
    assert sorted(results) == [n * 2 for n in range(30)]


def test_apply_async_get_and_ready(balanced, tmp_path):
    gate = tmp_path / "gate"

    @interactive
    def wait_for(path):
        import os
        import time

        while not os.path.exists(path):
            time.sleep(0.01)
        return "through"

    result = balanced.apply_async(wait_for, str(gate))
    assert not result.ready()
    with pytest.raises(TimeoutError):
        result.get(0.01)
    gate.write_text("")
    assert result.get(TIMEOUT_S) == "through"
    assert result.ready() and result.successful()


def test_progress_counts_finished_tasks(balanced, tmp_path):
    @interactive
    def wait_for(path):
        import os
        import time

        while path and not os.path.exists(path):
            time.sleep(0.01)

    gate = tmp_path / "gate"
    result = balanced.map_async(wait_for, ["", "", str(gate)], chunksize=1)
    wait_until("two of three tasks", lambda: result.progress == 2)
    assert not result.ready()
    gate.write_text("")
    result.get(TIMEOUT_S)
    assert result.progress == 3


def test_times_and_engine_of_a_result(client):
    result = client[0].apply_async(time.sleep, 0.05)
    result.get(TIMEOUT_S)
    assert result.engine_id == 0
    assert result.serial_time >= 0.05


def test_remote_errors_have_name_value_and_traceback(client):
    @interactive
    def fails(x):
        return 1 / x

    with pytest.raises(ipp.RemoteError) as caught:
        client[0].apply_sync(fails, 0)
    assert caught.value.ename == "ZeroDivisionError"
    assert "division by zero" in caught.value.evalue
    assert "fails" in "\n".join(caught.value.render_traceback())


def test_errors_of_several_engines_are_combined(everyone):
    with pytest.raises(ipp.CompositeError) as caught:
        everyone.apply_sync(interactive(lambda: [][1]))
    assert len(caught.value.elist) == 2
    assert {error[0] for error in caught.value.elist} == {"IndexError"}


def test_a_failing_task_does_not_affect_the_others(balanced):
    @interactive
    def picky(n):
        if n == 3:
            raise ValueError("not three")
        return n

    with pytest.raises((ipp.CompositeError, ipp.RemoteError), match="not three"):
        balanced.map_async(picky, range(6), chunksize=1).get(TIMEOUT_S)
    results = [balanced.apply_async(picky, n) for n in range(6)]
    balanced.wait(results, TIMEOUT_S)
    assert [result.successful() for result in results] == [True, True, True, False, True, True]
    assert results[5].get() == 5


def test_execute_error_shows_the_line(client):
    with pytest.raises(ipp.RemoteError) as caught:
        client[1].execute("x = 1\nraise KeyError('lost')", block=True)
    assert caught.value.ename == "KeyError"


def test_a_rich_result_of_execute(client):
    result = client[0].execute("6 * 7", silent=False)
    result.get(TIMEOUT_S)
    result.wait_for_output(TIMEOUT_S)
    assert result.execute_result["data"]["text/plain"] == "42"


def test_many_small_tasks_each_end_once(balanced):
    assert balanced.map(interactive(lambda n: n), range(300), chunksize=1).get(TIMEOUT_S) == list(range(300))


def test_two_clients_at_once(cluster, client):
    other = ipp.Client(connection_info=str(cluster.ipython_dir / "profile_default/security/ipcontroller-client.json"), timeout=30)
    try:
        answers = []
        thread = threading.Thread(target=lambda: answers.extend(other[:].apply_sync(interactive(lambda: "other"))))
        thread.start()
        assert client[:].apply_sync(interactive(lambda: "one")) == ["one"] * 2
        thread.join(TIMEOUT_S)
        assert answers == ["other"] * 2
    finally:
        other.close()


def test_queue_status(client):
    status = client.queue_status()
    assert {0, 1} <= set(status) and status["unassigned"] == 0
    assert set(status[0]) == {"queue", "completed", "tasks"}


def test_results_are_kept_for_later(cluster, client):
    result = client[0].apply_async(interactive(lambda: "kept"))
    assert result.get(TIMEOUT_S) == "kept"
    other = ipp.Client(connection_info=str(cluster.ipython_dir / "profile_default/security/ipcontroller-client.json"), timeout=30)
    try:
        assert other.get_result(result.msg_ids[0]).get(TIMEOUT_S) == "kept"
    finally:
        other.close()


def test_abort_of_a_waiting_task(client, tmp_path):
    gate = tmp_path / "gate"

    @interactive
    def wait_for(path):
        import os
        import time

        while not os.path.exists(path):
            time.sleep(0.01)

    engine = client[0]
    first = engine.apply_async(wait_for, str(gate))
    second = engine.apply_async(interactive(lambda: "ran"))
    client.abort(second.msg_ids, targets=0, block=True)
    gate.write_text("")
    first.get(TIMEOUT_S)
    with pytest.raises(ipp.TaskAborted):
        second.get(TIMEOUT_S)


def test_requests_are_listed_in_the_results(cluster, client):
    client[:].apply_sync(interactive(lambda: None))
    assert "client" in cluster.run("results", "--json")


def test_magics_run_code_on_all_engines(client):
    pytest.importorskip("IPython")
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell.instance()
    client.activate()
    with capture_output() as captured:
        shell.run_line_magic("px", "print('from px', 1 + 1)")
    InteractiveShell.clear_instance()
    assert captured.stdout.count("from px 2") == 2


def test_a_task_that_kills_its_worker_does_not_end_the_engine_process():
    cluster = Cluster("-n", "1")
    try:
        client = ipp.Client(connection_info=str(cluster.ipython_dir / "profile_default/security/ipcontroller-client.json"), timeout=30)
        try:
            assert client.ids == [0]
            pid = client[0].apply_sync(os.getpid)
            assert pid > 0
            # The task kills the worker; the engine reports it. The namespace is lost, so it registers as a new engine.
            with pytest.raises(ipp.RemoteError):
                client[0].apply_sync(os._exit, 3)
            wait_until("the engine to register with a new id", lambda: client.ids == [1])
            assert client[1].apply_sync(interactive(lambda: 5)) == 5
        finally:
            client.close()
        cluster.run("stop")
    finally:
        cluster.end()


def test_results_arrive_although_the_controller_is_killed():
    cluster = Cluster("-n", "2")
    try:
        client = ipp.Client(connection_info=str(cluster.ipython_dir / "profile_default/security/ipcontroller-client.json"), timeout=30)

        @interactive
        def slowly(x):
            import time

            time.sleep(0.2)
            return x * x

        def controller():
            return json.loads(cluster.run("status", "--json"))["controller"]["pid"]

        try:
            balanced = client.load_balanced_view().map_async(slowly, range(12))
            direct = client[:].apply_async(slowly, 7)
            wait_until("some results", lambda: balanced.progress >= 2)
            killed = controller()
            os.kill(killed, signal.SIGKILL)
            assert balanced.get(TIMEOUT_S) == [x * x for x in range(12)]
            assert direct.get(TIMEOUT_S) == [49, 49]
            assert controller() != killed
            # The client continues to work.
            assert client[:].apply_sync(slowly, 3) == [9, 9]
        finally:
            client.close()
        cluster.run("stop")
    finally:
        cluster.end()
