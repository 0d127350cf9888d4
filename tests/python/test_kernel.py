"""Tests of pcluster's engine as a kernel for notebooks of ipyparallel users.

`notebook` is an IPython shell in this process with a client in its namespace; it runs cells like those of a user.
"""
import builtins
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import pytest

ipp = pytest.importorskip("ipyparallel", reason="ipyparallel is not installed in this Python")

from conftest import REPOSITORY, Cluster, wait_until  # noqa: E402
from ipyparallel import Reference, depend, interactive, require  # noqa: E402
from IPython.core.interactiveshell import InteractiveShell  # noqa: E402
from IPython.utils.capture import capture_output  # noqa: E402

TIMEOUT_S = 60


def needs(module):
    """Skips, with a reason, if an optional package is not installed."""
    return pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=module + " is not installed in this Python")


def client_of(cluster):
    return ipp.Client(connection_info=str(cluster.ipython_dir / "profile_default/security/ipcontroller-client.json"), timeout=30)


@pytest.fixture(scope="module")
def engines():
    cluster = Cluster("-n", "2")
    yield cluster
    cluster.run("stop")
    cluster.end()


@pytest.fixture(scope="module")
def connected(engines):
    client = client_of(engines)
    yield client
    client.close()


@pytest.fixture
def client(connected):
    """A client; each test starts with empty namespaces."""
    connected.clear(block=True)
    return connected


@pytest.fixture
def everyone(client):
    return client[:]


@pytest.fixture
def balanced(client):
    return client.load_balanced_view()


class Notebook:
    def __init__(self, client):
        self.shell = InteractiveShell.instance(colors="nocolor")
        self.shell.user_ns.update(client=client, view=client[:], balanced=client.load_balanced_view())
        self.shell.user_ns["view"].block = True
        self.shell.user_ns["view"].activate()

    def cell(self, code, fails=False):
        """Runs a cell; returns the text of stdout and stderr, and rich outputs."""
        with capture_output() as shown:
            result = self.shell.run_cell(code)
        assert result.success is not fails, shown.stdout + shown.stderr
        shown.text = re.sub("\x1b[^m]*m", "", shown.stdout + shown.stderr)
        return shown

    def __getitem__(self, name):
        return self.shell.user_ns[name]


@pytest.fixture
def notebook(client):
    yield Notebook(client)
    # A shell without a kernel breaks comms of ipyparallel's clients in this process.
    InteractiveShell.clear_instance()


def done(result):
    """Waits for a result and all its output."""
    result.get(TIMEOUT_S)
    assert result.wait_for_output(TIMEOUT_S)
    return result


def execute(engine, code):
    return done(engine.execute(code, silent=False, block=False))


def error_of(result):
    """The error of a failed result."""
    with pytest.raises(ipp.RemoteError) as caught:
        result.get(TIMEOUT_S)
    return caught.value


# ---- one namespace


def test_apply_execute_push_and_pull_share_a_persistent_namespace(client, everyone):
    everyone.push({"a": 20}, block=True)
    everyone.execute("def twice(n): return 2 * n\nb = twice(a)", block=True)
    assert everyone.apply_sync(interactive(lambda: twice(a) + b)) == [80, 80]  # noqa: F821
    everyone.apply_sync(interactive(lambda: globals().update(c=a + 1)))  # noqa: F821
    assert everyone["c"] == [21, 21]
    assert everyone.apply_sync(interactive(lambda name: __name__ == name), "__main__") == [True, True]
    client.clear(block=True)
    with pytest.raises(ipp.RemoteError, match="NameError"):
        client[0].pull("a", block=True)


def test_a_function_leaves_nothing_behind(client):
    names = interactive(lambda: set(globals()))
    before = client[0].apply_sync(names)
    assert client[0].apply_async(names).get(TIMEOUT_S) == before


# ---- magics


def test_px_and_its_cells(notebook):
    assert notebook.cell("%px print('on', 6 * 7)").text.count("on 42") == 2
    assert notebook.cell("%%px --local\nwhere = 'everywhere'\nprint(where)").text.count("everywhere") == 3
    assert notebook["where"] == "everywhere"
    shown = notebook.cell("%%px --targets 1\nprint('printed')\n6 * 7")
    assert shown.text.count("printed") == 1 and "[stdout:1]" in shown.text
    (output,) = shown.outputs
    assert re.sub("\x1b[^m]*m", "", output.data["text/plain"]).endswith(": 42")
    assert notebook.cell("%px 1 / 0", fails=True).text.count("ZeroDivisionError: division by zero") == 2


def test_px_noblock_and_pxresult(notebook):
    notebook.cell("%%px --noblock -o later\nprint('by and by')\n'a value'")
    assert done(notebook["later"]).get() is not None
    shown = notebook.cell("%pxresult")
    assert shown.text.count("by and by") == 2
    assert sum("a value" in str(output.data) for output in shown.outputs) == 2


def test_pxconfig_and_autopx(notebook):
    notebook.cell("%pxconfig --targets 0")
    assert notebook.cell("%px print('alone')").text.count("alone") == 1
    notebook.cell("%pxconfig --targets all")
    notebook.cell("%autopx")
    try:
        assert notebook.cell("elsewhere = 33\nprint('auto', elsewhere)").text.count("auto 33") == 2
    finally:
        notebook.cell("%autopx")
    assert "elsewhere" not in notebook.shell.user_ns
    assert notebook["view"]["elsewhere"] == [33, 33]


def test_px_stream_shows_output_as_it_comes(notebook):
    assert re.findall(r"\d", re.sub(r"\[.*?\]", "", notebook.cell("%%px --targets 0 --stream\nfor n in range(3): print(n)").text)) == list("012")


# ---- output


def test_rich_display(client):
    code = """
from IPython.display import HTML, Image, display
import sys
display(HTML('<b>bold</b>'))
print('between')
display(Image(data=b'\\x89PNG not really', format='png'))
handle = display('first', display_id=True)
handle.update('second')
HTML('<i>result</i>')
"""
    result = execute(client[0], code)
    shown = [output["data"] for output in result.outputs]
    assert shown[0]["text/html"] == "<b>bold</b>"
    assert shown[1]["image/png"].startswith("iVBO")
    assert shown[2]["text/plain"] == "'first'"
    assert result.execute_result["data"]["text/html"] == "<i>result</i>"
    assert result.stdout == "between\n"


@needs("matplotlib")
def test_matplotlib_inline(client):
    result = execute(client[0], "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 4, 9]);")
    (figure,) = [output["data"] for output in result.outputs]
    assert figure["image/png"].startswith("iVBO") and len(figure["image/png"]) > 1000
    # A function has no end of a cell: its figure is published by show().
    shown = client[0].apply_async(interactive(lambda: plt.plot([1, 2]) and plt.show()))  # noqa: F821
    assert "image/png" in done(shown).outputs[0]["data"]


def test_capture_and_output_that_bypasses_python(client):
    result = execute(client[0], "%%capture caught\nimport sys\nprint('out')\nprint('err', file=sys.stderr)\n'value'")
    assert (result.stdout, result.stderr, result.outputs) == ("", "", [])
    result = execute(client[0], "print(repr(caught.stdout), repr(caught.stderr), caught.outputs[0].data)")
    assert result.stdout == "'out\\n' 'err\\n' {'text/plain': \"'value'\"}\n"
    result = execute(client[0], "import os\nprint('one')\nos.system('echo two')\nos.write(1, b'three\\n')\nprint('four')")
    assert result.stdout == "one\ntwo\nthree\nfour\n"
    assert "five" in execute(client[0], "!echo five").stdout


def test_output_is_in_order(client):
    """Streams and displays are different messages; they arrive in the order of the cell."""
    order = []
    code = "from IPython.display import display\nimport time\nfor n in range(3):\n    print(n)\n    display(n)"
    session_of = client.session
    original = session_of.deserialize

    def recording(message, *arguments, **options):
        decoded = original(message, *arguments, **options)
        kind, content = decoded["header"]["msg_type"], decoded["content"]
        if kind == "stream":
            order.extend(content["text"].split())
        elif kind == "display_data":
            order.append("display " + content["data"]["text/plain"])
        return decoded

    session_of.deserialize = recording
    try:
        execute(client[0], code)
    finally:
        del session_of.deserialize
    assert order == ["0", "display 0", "1", "display 1", "2", "display 2"]


def test_output_of_children_to_dev_stdout_follows_earlier_output(client):
    @interactive
    def work(name, stream):
        import subprocess
        import sys

        print("a", file=getattr(sys, stream))
        subprocess.run("echo b > " + name, shell=True, check=True)
        print("c", file=getattr(sys, stream))

    for name, stream in (("/dev/stdout", "stdout"), ("/dev/stderr", "stderr")):
        result = client[0].apply_async(work, name, stream)
        result.get(TIMEOUT_S)
        result.wait_for_output(TIMEOUT_S)
        assert getattr(result, stream) == "a\nb\nc\n", name
    cell = client[0].execute("import os\nprint('a'); os.system('echo b > /dev/stdout'); print('c')", silent=False)
    cell.get(TIMEOUT_S)
    cell.wait_for_output(TIMEOUT_S)
    assert cell.stdout == "a\nb\nc\n"


def test_output_larger_than_a_pipe_is_complete_and_in_order(client):
    code = "import os, sys\nfor i in range(60000): print(i)\nos.system('seq 60000 119999')\nsys.stdout.write('x' * 6_000_000 + '\\n')"
    result = client[0].execute(code, silent=False)
    result.get(TIMEOUT_S)
    result.wait_for_output(TIMEOUT_S)
    assert result.stdout == "".join("%d\n" % i for i in range(120000)) + "x" * 6_000_000 + "\n"


def test_data_is_published_while_a_function_runs(client):
    @interactive
    def publishes():
        from ipyparallel.datapub import publish_data

        publish_data({"progress": 0.5})

    result = done(client[0].apply_async(publishes))
    wait_until("the data", lambda: result.data == {"progress": 0.5})


def test_threads_that_display_do_not_touch_results(client):
    engine = client[0]
    execute(
        engine,
        """
import threading
from IPython.display import HTML, display
stop = []
def report(text):
    while not stop: display(text)
for text in ("progress", HTML("x" * 300_000)):
    threading.Thread(target=report, args=(text,)).start()
""",
    )
    try:
        for _ in range(30):
            assert engine.apply(bytes, 2_000_000).get(TIMEOUT_S) == bytes(2_000_000)
    finally:
        engine.execute("stop.append(1)").get(TIMEOUT_S)
    # All displays of several threads of one cell arrive complete.
    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as pool: list(pool.map(lambda _: [display(HTML("y" * 100_000)) for _ in range(10)], range(4)))
"""
    assert [output["data"]["text/html"] for output in execute(engine, code).outputs] == ["y" * 100_000] * 40


def test_forked_children_do_not_write_to_the_engine(client, tmp_path):
    client[0]["folder"] = str(tmp_path)
    code = """
import multiprocessing, os
from IPython.display import display
def work(_):
    files = [open(os.path.join(folder, str(k)), "w") for k in range(10)]
    display("from a child")
    for file in files: file.write("data"); file.close()
with multiprocessing.get_context("fork").Pool(1) as pool: pool.map(work, [0])
display("from the parent")
"""
    result = execute(client[0], code)
    assert [output["data"]["text/plain"] for output in result.outputs] == ["'from the parent'"]
    assert "display output of a forked child process is not shown" in result.stderr
    assert [path.read_text() for path in tmp_path.iterdir()] == ["data"] * 10


def messages(result):
    result.get(TIMEOUT_S)
    return result.wait_for_output(1)


LATE = """
import asyncio, os, subprocess, sys, threading, time
from IPython.display import display
go, finished = threading.Event(), threading.Event()
def late(how):
    go.wait()
    sys.stdout.write("printed late by " + how + "\\n")
    sys.stderr.write("to stderr by " + how + "\\n")
    display("displayed late by " + how)
def of_thread():
    inner = threading.Thread(target=late, args=("a thread of a thread",))
    inner.start()
    late("a thread")
    inner.join()
    finished.set()
threading.Thread(target=of_thread).start()
async def of_loop():
    while not finished.is_set():
        await asyncio.sleep(0.01)
    late("the event loop")
looping = asyncio.ensure_future(of_loop())
print("in time")
"""


def test_output_after_the_end_of_a_request_belongs_to_it(engines, client):
    first = execute(client[0], LATE)
    assert (first.stdout, first.stderr, first.outputs) == ("in time\n", "", [])
    other = client_of(engines)
    try:
        wait_until("the other client to receive published messages", lambda: messages(other[1].execute("", silent=False)))
        # While another client's request is running, and between requests.
        during = execute(other[0], "go.set()\nfinished.wait()\nprint('of another')")
        assert during.stdout == "of another\n"
        assert (during.stderr, during.outputs) == ("", [])
        speakers = ["a thread", "a thread of a thread", "the event loop"]
        # The client stores output after the result under the request's id.
        late = client.metadata[first.msg_ids[0]]
        wait_until("the late output", lambda: len(late.outputs) == 3 and late.stderr.count("\n") == 3)
        assert sorted(late.stdout.splitlines()) == ["printed late by " + speaker for speaker in speakers]
        assert sorted(late.stderr.splitlines()) == ["to stderr by " + speaker for speaker in speakers]
        assert {output["data"]["text/plain"] for output in late.outputs} == {repr("displayed late by " + s) for s in speakers}
        assert (during.stdout, during.stderr, during.outputs) == ("of another\n", "", [])
    finally:
        other.close()


def test_output_of_a_child_process_between_requests_belongs_to_none(client, tmp_path):
    client[0]["go"], client[0]["done"] = str(tmp_path / "go"), str(tmp_path / "done")
    code = """
import subprocess
child = subprocess.Popen(["sh", "-c", 'until [ -e "$1" ]; do sleep 0.01; done; echo from a child; : > "$2"', "sh", go, done])
"""
    assert execute(client[0], code).stdout == ""
    (tmp_path / "go").touch()
    wait_until("the child", (tmp_path / "done").exists)
    assert execute(client[0], "print('next')").stdout == "next\n"
    client[0].execute("child.wait()").get(TIMEOUT_S)


# ---- errors


def test_tracebacks_show_the_users_lines(client):
    error = error_of(client[0].execute("def inner(x):\n    return 1 / x\n\ninner(0)", block=False))
    lines = re.sub("\x1b[^m]*m", "", "\n".join(error.render_traceback()))
    assert error.ename == "ZeroDivisionError" and "return 1 / x" in lines and "inner(0)" in lines
    assert "<pcluster" + " worker>" not in lines
    error = error_of(client[0].execute("1 +", block=False))
    assert error.ename == "SyntaxError"
    error = error_of(client[0].apply_async(interactive(lambda: [][7])))
    assert error.ename == "IndexError" and error.engine_info["method"] == "apply"
    assert "<pcluster" + " worker>" not in "\n".join(error.render_traceback())


def test_errors_without_text_and_values_that_cannot_be_serialized(client):
    client[0].execute("class Odd(Exception):\n    def __str__(self): raise ValueError", block=True)
    assert error_of(client[0].execute("raise Odd", block=False)).ename in ("Odd", "ValueError")
    error = error_of(client[0].apply_async(interactive(lambda: __import__("threading").Lock())))
    assert error.ename == "TypeError" and "pickle" in error.evalue
    assert error_of(client[0].execute("import sys; sys.exit(3)", block=False)).ename == "SystemExit"
    assert client[0].apply_sync(interactive(lambda: 1)) == 1


def test_input_is_rejected_with_a_hint(client):
    for asks in ("input('name? ')", "import getpass; getpass.getpass('name? ')"):
        error = error_of(client[0].execute(asks, block=False))
        assert error.ename == "StdinNotImplementedError"
        assert "'name? '" in error.evalue and "push it" in error.evalue
    assert error_of(client[0].apply_async(builtins.input, "name? ")).ename == "StdinNotImplementedError"


def test_a_running_cell_and_a_running_function_are_interrupted(client, everyone):
    sleeping = "import time\nprint('asleep', flush=True)\ntime.sleep(600)"
    awaiting = "import asyncio\nprint('asleep', flush=True)\nawait asyncio.sleep(600)\nwoken = True"

    @interactive
    def sleeps():
        import time

        print("asleep", flush=True)
        time.sleep(600)

    for start in (
        lambda: everyone.execute(sleeping, silent=False, block=False),
        lambda: everyone.execute(awaiting, silent=False, block=False),
        lambda: everyone.apply_async(sleeps),
    ):
        result = start()
        wait_until("both to sleep", lambda: all("asleep" in text for text in result.stdout))
        client.send_signal("SIGINT", block=True)
        error = error_of(result)
        assert [one[0] for one in error.elist] == ["KeyboardInterrupt"] * 2
    # An idle engine ignores it, and its namespace is unchanged.
    client.send_signal("SIGINT", block=True)
    assert everyone.apply_sync(interactive(lambda: "woken" in globals())) == [False, False]


def test_a_first_cell_has_no_extra_output_and_exiting_python_does_not_end_the_cluster():
    cluster = Cluster("-n", "1")
    client = client_of(cluster)
    try:
        # The first cell of an engine: no output but its own.
        first = execute(client[0], "print('first')")
        assert (first.stdout, first.stderr) == ("first\n", "")
        error = error_of(client[0].execute("import os; os._exit(3)", block=False))
        # Either the engine or the controller reports it first, with its own message.
        assert error.ename == "EngineError"
        assert "died while running" in error.evalue or "exit code 3" in error.evalue
        # It has a new id; the client may notice the end of the first one later.
        wait_until("another engine", lambda: [engine for engine in client.ids if engine != 0])
        assert client[client.ids[-1]].apply_sync(interactive(lambda: 5)) == 5
    finally:
        client.close()
        cluster.end()


# ---- dependencies, references, closures, classes


def test_require_and_depend(client, balanced):
    @require("json", "os.path")
    @interactive
    def needs_modules():
        return json.dumps([1]), os.path.basename("a/b")  # noqa: F821

    assert client[0].apply_sync(needs_modules) == ("[1]", "b")
    client[1].push({"special": True}, block=True)

    @depend(interactive(lambda: globals().get("special", False)))
    @interactive
    def only_where_it_is_special():
        return get_ipython().kernel.engine_id  # noqa: F821

    results = [balanced.apply_async(only_where_it_is_special) for _ in range(6)]
    assert [result.get(TIMEOUT_S) for result in results] == [1] * 6

    @require("no_such_module_anywhere")
    @interactive
    def nowhere():
        pass

    assert error_of(balanced.apply_async(nowhere)).ename == "ImpossibleDependency"
    assert error_of(client[0].apply_async(nowhere)).ename == "UnmetDependency"


def test_functions_require_functions(notebook):
    notebook.cell("import ipyparallel as ipp\ndef helper():\n    return 'helped'")
    notebook.cell("@ipp.require(helper)\ndef needs():\n    return helper()\nhelped = view.apply_sync(needs)")
    assert notebook["helped"] == ["helped"] * 2


def test_references(client, everyone):
    everyone.scatter("part", [1, 2], block=True)
    identity = interactive(lambda x: x)
    assert everyone.apply_sync(identity, Reference("part")) == [[1], [2]]
    assert everyone.apply_sync(identity, Reference("part[0] * 10")) == [10, 20]
    assert error_of(client[0].apply_async(identity, Reference("nothing"))).ename == "NameError"


def test_closures_and_defaults(notebook):
    notebook.cell("def times(n):\n    def inner(x, plus=1):\n        return n * x + plus\n    return inner\nproducts = view.apply_sync(times(3), 4)")
    assert notebook["products"] == [13, 13]
    notebook.cell("squares = balanced.map_sync(lambda x, y: x * y, range(5), range(5))")
    assert notebook["squares"] == [0, 1, 4, 9, 16]


def test_classes_of_the_notebook(notebook):
    notebook.cell("class Point:\n    def __init__(self, x):\n        self.x = x\n    def twice(self):\n        return 2 * self.x")
    notebook.cell("doubled = view.apply_sync(lambda cls, x: cls(x).twice(), Point, 3)")
    assert notebook["doubled"] == [6, 6]
    notebook.cell("view['Point'] = Point\n%px made = Point(5)\nback = [point.twice() for point in view['made']]")
    assert notebook["back"] == [10, 10]


def test_imports_on_both_sides(notebook, everyone):
    notebook.cell("with view.sync_imports():\n    import fractions\n    from os.path import join")
    assert everyone.apply_sync(interactive(lambda: str(fractions.Fraction(2, 4)))) == ["1/2"] * 2  # noqa: F821
    assert everyone.apply_sync(interactive(lambda: join("a", "b"))) == ["a/b"] * 2  # noqa: F821


@pytest.mark.parametrize("package", ["dill", "cloudpickle"])
def test_other_pickles(everyone, package):
    pytest.importorskip(package)
    getattr(everyone, "use_" + package)()
    try:
        for function in everyone.apply_sync(interactive(lambda x: lambda y: x + y), 3):
            assert function(4) == 7
    finally:
        everyone.use_pickle()


# ---- buffers


def test_arrays(client, everyone):
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(200_000, dtype="float64").reshape(200, 1000)
    assert everyone.apply_sync(interactive(lambda a: (a.shape, str(a.dtype), float(a[1, 1]))), array) == [((200, 1000), "float64", 1001.0)] * 2
    nested = client[0].apply_sync(interactive(lambda a: {"rows": [a[0], a[:, 0]], "n": len(a)}), array)
    assert nested["n"] == 200 and (nested["rows"][1] == array[:, 0]).all()
    everyone.scatter("part", array, block=True)
    assert [part.shape for part in everyone["part"]] == [(100, 1000)] * 2
    assert (everyone.gather("part", block=True) == array).all()
    text = numpy.array(["a", None, {"b": 1}], dtype=object)
    assert client[1].apply_sync(interactive(lambda a: a), text)[2] == {"b": 1}
    assert len(client[1].apply_sync(interactive(lambda: b"x" * 3_000_000))) == 3_000_000


@needs("pandas")
def test_frames(client, everyone):
    import pandas

    frame = pandas.DataFrame({"n": range(50_000), "word": ["a", "b"] * 25_000})
    means = everyone.apply_sync(interactive(lambda f: f.groupby("word").n.mean()), frame)
    assert [dict(mean) for mean in means] == [{"a": 24999.0, "b": 25000.0}] * 2
    everyone.push({"frame": frame}, block=True)
    assert client[1]["frame"].equals(frame)
    result = execute(client[0], "frame.head(2)")
    assert "<table" in result.execute_result["data"]["text/html"]


# ---- event loops


def test_cells_find_a_running_event_loop_and_functions_may_run_their_own(client):
    code = "import asyncio\nasync def count():\n    global n\n    for n in range(1000):\n        await asyncio.sleep(0.001)\ntask = asyncio.create_task(count())"
    execute(client[0], code)
    # Meanwhile the engine only receives requests for the current count.
    wait_until("it to count between requests", lambda: client[0].pull("n", block=True) >= 20)
    execute(client[0], "task.cancel()\nawait asyncio.wait([task])")
    assert client[0].apply_sync(interactive(lambda: task.cancelled()))  # noqa: F821
    assert execute(client[0], "await asyncio.sleep(0, 'awaited')").execute_result["data"]["text/plain"] == "'awaited'"

    @interactive
    def runs_its_own():
        import asyncio

        return asyncio.run(asyncio.sleep(0, "its own"))

    assert client[0].apply_sync(runs_its_own) == "its own"


def test_background_tasks_of_the_event_loop_cannot_end_the_engine(client):
    pid = client[0].apply_sync(os.getpid)
    code = "import asyncio, sys\nasync def leaves():\n    sys.exit(3)\ntask = asyncio.create_task(leaves())"
    execute(client[0], code)
    time.sleep(0.05)
    assert client[0].apply_sync(os.getpid) == pid


# ---- executors, joblib, Dask


def test_executors_and_futures(client, balanced):
    import concurrent.futures

    with client.executor() as executor:
        assert executor.submit(pow, 2, 5).result(TIMEOUT_S) == 32
        assert list(executor.map(pow, [1, 2, 3], [2, 2, 2])) == [1, 4, 9]
    futures = [balanced.apply_async(pow, n, 2) for n in range(5)]
    finished = concurrent.futures.as_completed(futures, timeout=TIMEOUT_S)
    assert sorted(future.result() for future in finished) == [0, 1, 4, 9, 16]


@needs("joblib")
def test_joblib(client, balanced):
    import joblib
    from ipyparallel.joblib import IPythonParallelBackend

    joblib.register_parallel_backend("pcluster", lambda **options: IPythonParallelBackend(view=balanced, **options))
    with joblib.parallel_config("pcluster"):
        assert joblib.Parallel(n_jobs=2)(joblib.delayed(pow)(n, 2) for n in range(10)) == [n * n for n in range(10)]


@needs("distributed")
def test_engines_become_dask_workers_and_engines_again(client, everyone):
    with client.become_dask(nthreads=1) as dask:
        dask.wait_for_workers(2, timeout=TIMEOUT_S)
        pids = set(dask.gather(dask.map(lambda n: __import__("os").getpid(), range(20), pure=False)))
        assert pids <= set(everyone.apply_sync(os.getpid)) and pids
        client.stop_dask()
    assert everyone.apply_sync(interactive(lambda: 2)) == [2, 2]


# ---- other Pythons


def test_a_python_without_ipyparallel_names_the_missing_package(tmp_path):
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True, timeout=TIMEOUT_S)
    python = str(tmp_path / "bare" / "bin" / "python")
    cluster = Cluster("-n", "1", "--python", python)
    client = client_of(cluster)
    try:
        for result in (client[0].apply_async(interactive(lambda: 1)), client[0].execute("1", block=False)):
            error = error_of(result)
            assert error.ename == "ImportError"
            assert "No module named" in error.evalue
            assert "{} -m pip install ipyparallel".format(python) in error.evalue
        # Functions that need only Python work.
        assert cluster.run("apply", "math:sqrt", "4").split()[-1] == "2.0"
    finally:
        client.close()
        cluster.end()


def other_pythons():
    """The oldest and the newest other Python of this machine, 3.8 or later: on the PATH, or of pyenv."""
    versions = pathlib.Path(os.environ.get("PYENV_ROOT") or pathlib.Path.home() / ".pyenv") / "versions"
    found = {}
    for minor in range(8, 16):
        if (3, minor) != sys.version_info[:2]:
            candidates = [str(path) for path in sorted(versions.glob("3.{}.*/bin/python".format(minor)))]
            candidates.append(shutil.which("python3.{}".format(minor)))
            runs = [path for path in candidates if path and subprocess.run([path, "-c", ""], stderr=subprocess.DEVNULL).returncode == 0]
            found.update({minor: runs[0]} if runs else {})
    return [found[min(found)], found[max(found)]] if found else []


def test_the_worker_on_other_pythons_of_this_machine():
    pythons = other_pythons()
    if not pythons:
        pytest.skip("not applicable: this machine has no other Python 3.8 or later")
    tests = ["hello", "positional", "pickled", "tracebacks", "interrupts", "pools", "execute", "all_strings"]
    for python in pythons:
        command = [python, "-m", "unittest", str(REPOSITORY / "tests" / "python" / "test_worker.py")]
        command += [word for test in tests for word in ("-k", test)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, timeout=100)
        assert done.returncode == 0, python + ":\n" + done.stdout
        assert int(re.search(r"Ran (\d+) tests", done.stdout).group(1)) >= len(tests), done.stdout


@needs("vermin")
@pytest.mark.parametrize("name", ["state.py", "records.py", "values.py", "code.py", "worker.py", "interpreter.py", "origins.py", "kernel.py", "ipython.py"])
def test_the_worker_is_compatible_with_python_3_8(name):
    source = REPOSITORY / "src" / "engine" / "worker" / name
    checked = subprocess.run(
        [sys.executable, "-c", "import vermin; vermin.main()", "--no-tips", "--violations", "-t=3.8-", str(source)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
        timeout=TIMEOUT_S,
    )
    assert checked.returncode == 0, checked.stdout
