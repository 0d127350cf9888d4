"""Tests of shipping a map's current code: modules beside the file, packages, data, child processes, resubmission."""
import json
import os
import shutil
import sqlite3
import subprocess
import textwrap

import pytest
from conftest import Cluster, pcluster_binary


@pytest.fixture(scope="module")
def engines():
    running = Cluster("-n", "2")
    yield running
    running.run("stop")
    running.end()


def write(directory, **files):
    for name, text in files.items():
        path = directory.joinpath(*name.replace("__init__", "INIT").split("__")).with_suffix(".py")
        path = path.with_name(path.name.replace("INIT", "__init__"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


def pcluster(cluster, cwd, *arguments, code=0):
    """Runs a command in a directory; returns stdout and stderr."""
    done = subprocess.run(
        [pcluster_binary(), *arguments],
        env=cluster.environment,
        cwd=str(cwd),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        timeout=120,
    )
    assert code is None or done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done.stdout, done.stderr


def values(cluster, cwd, function, *arguments, inputs="0..1"):
    text, _ = pcluster(cluster, cwd, "map", function, "--range", inputs, *arguments)
    return [json.loads(line) for line in text.splitlines()]


def test_projects_with_modules_of_the_same_name_are_independent(engines, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, helper="NAME = %r" % name, work="import helper\ndef f(x): return helper.NAME")
    assert values(engines, tmp_path / "a", "work.py:f", inputs="0..4") == ["a"] * 4
    assert values(engines, tmp_path / "b", "work.py:f", inputs="0..4") == ["b"] * 4
    assert values(engines, tmp_path, "a/work.py:f", inputs="0..4") == ["a"] * 4
    assert pcluster(engines, tmp_path, "apply", "a/work.py:f", "1")[0] == '[0] "a"\n[1] "a"\n'
    assert pcluster(engines, tmp_path, "apply", "b/work.py:f", "1")[0] == '[0] "b"\n[1] "b"\n'


def test_the_next_map_uses_an_edited_module(engines, tmp_path):
    write(tmp_path, work="def f(x):\n    from helper import K\n    return K")
    for number in (1, 2000, 3):
        write(tmp_path, helper="K = %d" % number)
        assert values(engines, tmp_path, "work.py:f", inputs="0..4") == [number] * 4


def test_code_runs_where_its_directory_does_not_exist(engines, tmp_path):
    project = tmp_path / "project"
    write(
        project,
        work="from pkg import deep\nimport pkg.sub.other as o\ndef f(x): return [deep.twice(x), o.NAME, __file__]\ndef bad(x):\n    return deep.fails(x)",
        pkg____init__="",
        pkg__deep="from .sub import other\ndef twice(x): return 2 * x\ndef fails(x):\n    return x / 0  # the line that fails",
        pkg__sub____init__="",
        pkg__sub__other="NAME = __name__",
    )
    before = pcluster(engines, project, "map", "work.py:f", "--range", "1..2")[0]
    assert json.loads(before) == [2, "pkg.sub.other", str(project / "work.py")]
    # Keep the engines busy until the directory is removed.
    (tmp_path / "wait.py").write_text("import os, time\ndef f(p):\n while not os.path.exists(p): time.sleep(0.02)\n")
    (tmp_path / "inputs").write_text("%s\n" % (tmp_path / "go") * 2)
    waiting = pcluster(engines, tmp_path, "map", "wait.py:f", "inputs", "--detach")[0].strip()
    first = pcluster(engines, project, "map", "work.py:f", "--range", "3..4", "--detach")[0].strip()
    bad = pcluster(engines, project, "map", "work.py:bad", "--range", "3..4", "--detach")[0].strip()
    shutil.rmtree(project)
    (tmp_path / "go").write_text("")
    for number in (waiting, first):
        pcluster(engines, tmp_path, "wait", number)
    pcluster(engines, tmp_path, "wait", bad, code=1)
    row = json.loads(pcluster(engines, tmp_path, "results", first, "--jsonl")[0])
    assert row["value"][:2] == [6, "pkg.sub.other"] and row["value"][2].endswith("/work.py")
    assert not row["value"][2].startswith(str(project))
    traceback = json.loads(pcluster(engines, tmp_path, "results", bad, "--jsonl")[0])["error"]["traceback"]
    assert 'File "%s", line 4, in fails\n    return x / 0  # the line that fails' % (project / "pkg" / "deep.py") in traceback
    assert "importlib" not in traceback and "pcluster worker" not in traceback


def test_with_sends_data_and_modules_of_other_directories(engines, tmp_path):
    project = tmp_path / "project"
    write(
        project,
        work="""
            import os
            here = os.path.dirname(os.path.abspath(__file__))
            def f(x):
                import importlib
                tool = importlib.import_module("tool")
                with open(os.path.join(here, "data", "table.bin"), "rb") as file:
                    return [tool.NAME, list(file.read()), os.access(os.path.join(here, "data", "run.sh"), os.X_OK)]
        """,
    )
    write(tmp_path, tool____init__="from .part import NAME", tool__part="NAME = 'tool'")
    (project / "data").mkdir()
    (project / "data" / "table.bin").write_bytes(b"\x00\xff")
    (project / "data" / "run.sh").write_text("#!/bin/sh\n")
    (project / "data" / "run.sh").chmod(0o755)
    found = values(engines, project, "work.py:f", "--with", "data", "--with", "../tool")
    assert found == [["tool", [0, 255], True]]
    _, error = pcluster(engines, project, "map", "work.py:f", "--range", "0..1", code=1)
    assert "No module named 'tool'" in error
    write(project, top="import missing_module_of_mine\ndef f(x): pass")
    _, error = pcluster(engines, project, "map", "top.py:f", "--range", "0..1", code=1)
    assert "ModuleNotFoundError" in error and "--with PATH" in error
    _, error = pcluster(engines, project, "map", "work.py:f", "--range", "0..1", "--with", "nothing", code=2)
    assert "no file or directory %s" % (project / "nothing") in error


def test_a_large_bundle_is_sent_once(engines, tmp_path):
    write(tmp_path, work="import os\ndef f(x): return os.path.getsize(os.path.join(os.path.dirname(__file__), 'big.bin'))")
    for size in (400_000, 3_000_000):
        (tmp_path / "big.bin").write_bytes(os.urandom(size))
        for _ in range(2):
            assert values(engines, tmp_path, "work.py:f", "--with", "big.bin", inputs="0..4") == [size] * 4


def test_child_processes_find_the_functions(engines, tmp_path):
    write(
        tmp_path,
        pools="""
            import multiprocessing
            import helper
            def sq(x): return helper.square(x)
            def f(method):
                with multiprocessing.get_context(method).Pool(2) as pool:
                    return pool.map_async(sq, range(3)).get(60)
            def loky(n):
                joblib = __import__("joblib")
                return joblib.Parallel(n_jobs=2)(joblib.delayed(sq)(i) for i in range(n))
        """,
        helper="def square(x): return x * x",
    )
    (tmp_path / "methods").write_text("spawn\nforkserver\nfork\n")
    text, _ = pcluster(engines, tmp_path, "map", "pools.py:f", "methods")
    assert text == "[0,1,4]\n" * 3
    pytest.importorskip("joblib", reason="joblib is not installed in this Python")
    assert values(engines, tmp_path, "pools.py:loky", inputs="3..4") == [[0, 1, 4]]


def test_files_are_read_in_their_declared_encoding(engines, tmp_path):
    (tmp_path / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\nfrom other import X\ndef f(x): return X + '\xe9'\n")
    (tmp_path / "other.py").write_bytes(b"\xef\xbb\xbfX = '\xc3\xa9'\n")
    assert values(engines, tmp_path, "latin.py:f") == ["\xe9\xe9"]
    (tmp_path / "script.py").write_bytes(b"# coding: latin-1\nprint(ord('\xe9'))\n")
    assert pcluster(engines, tmp_path, "run", "script.py")[0] == "[0] 233\n[1] 233\n"


def test_a_user_module_shadows_a_standard_module_like_in_python(engines, tmp_path):
    write(
        tmp_path,
        work="import base64, statistics\ndef f(x): return [base64.MINE, statistics.mean([1, 3])]",
        base64="MINE = 1",
        random="import random\ndef f(x): return [random.Random(1).random() > 0, __name__]",
    )
    assert values(engines, tmp_path, "work.py:f") == [[1, 2]]
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.move(str(tmp_path / "random.py"), str(alone / "random.py"))
    assert values(engines, tmp_path, "alone/random.py:f") == [[True, "pcluster_random"]]


def test_modules_of_scripts_and_reducing_functions_are_sent(engines, tmp_path):
    write(
        tmp_path,
        script="from helper import add\nprint(add(1, 2))",
        helper="def add(a, b): return a + b",
        work="class C:\n    def __init__(self, n): self.n = n\ndef f(x): return C(x)",
        folding="import helper\ndef fold(a, b):\n    n = lambda c: getattr(c, 'n', c)\n    return helper.add(n(a), n(b))",
    )
    assert pcluster(engines, tmp_path, "run", "script.py")[0] == "[0] 3\n[1] 3\n"
    text, _ = pcluster(engines, tmp_path, "map", "work.py:f", "--range", "1..5", "--reduce", "folding.py:fold")
    assert text == "10\n"


def test_a_syntax_error_names_file_and_line(engines, tmp_path):
    write(tmp_path, work="import broken\ndef f(x): pass", broken="x = 1\ndef g(:\n")
    _, error = pcluster(engines, tmp_path, "map", "work.py:f", "--range", "0..1", code=1)
    assert "%s, line 2 does not compile: " % (tmp_path / "broken.py") in error
    assert "(compiled with Python 3" in error


def test_resubmit_reports_changes_and_runs_the_selected_code(engines, tmp_path):
    write(tmp_path, job="import helper\ndef f(x): return helper.g(x)", helper="def g(x):\n    if x == 2: raise ValueError(x)\n    return x")
    _, error = pcluster(engines, tmp_path, "map", "job.py:f", "--range", "0..4", "--name", "changing", code=1)
    number = error.split("task ")[1].split(".")[0]

    def run_again(*arguments, code=0):
        messages = pcluster(engines, tmp_path, "resubmit", *arguments, code=code)[1]
        if code == 0:
            pcluster(engines, tmp_path, "wait", number, code=None)
        rows = pcluster(engines, tmp_path, "results", number, "--jsonl")[0].splitlines()
        return messages, [json.loads(row)["value"] for row in rows]

    messages, found = run_again(number, "--failed")
    assert "changed" not in messages and found == [0, 1, None, 3]
    write(tmp_path, helper="def g(x): return 10 * x")
    messages, found = run_again(number, "--failed")
    assert "the code of map %s has changed since it was last submitted: %s" % (number, tmp_path / "helper.py") in messages
    assert "--code current" in messages and found == [0, 1, None, 3]
    messages, found = run_again(number, "--failed", "--code", "current")
    assert found == [0, 1, 20, 3]
    messages, found = run_again("%s.0-1" % number)
    assert "changed" not in messages and found == [0, 10, 20, 3]
    with sqlite3.connect("file:%s?mode=ro" % (engines.ipython_dir / "profile_default" / "pcluster.db"), uri=True) as file:
        codes = lambda table, key: file.execute("SELECT code FROM %s WHERE %s >> 32 = ? ORDER BY id" % (table, key), [int(number)]).fetchall()  # noqa: E731
        assert codes("task", "id") == [(1,), (1,), (1,), (0,)]
        assert codes("attempt", "task") == [(0,)] * 5
        ((before, now),) = file.execute(
            "SELECT e.bundle, m.bundle FROM earlier_code e JOIN map m ON m.id = e.map WHERE e.map = ?", [number]
        ).fetchall()
        assert before != now and file.execute("SELECT count(*) FROM bundle WHERE hash IN (?, ?)", [before, now]).fetchone() == (2,)
    (tmp_path / "job.py").unlink()
    messages, found = run_again("%s.3" % number)
    assert "cannot read the code of map" in messages and found == [0, 10, 20, 30]
    run_again("%s.3" % number, "--code", "current", code=2)
    # Unreferenced bundles are removed.
    pcluster(engines, tmp_path, "purge", number, "--yes")
    with sqlite3.connect("file:%s?mode=ro" % (engines.ipython_dir / "profile_default" / "pcluster.db"), uri=True) as file:
        assert file.execute("SELECT count(*) FROM bundle WHERE hash IN (?, ?)", [before, now]).fetchone() == (0,)
