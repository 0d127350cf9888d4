"""Tests of the Python worker over raw pipes. Run with pytest or `python -m unittest`, on Python 3.8 or later."""
import ast
import fcntl
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import unittest
import unittest.mock

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import worker_harness  # noqa: E402
from worker_harness import PARTS, Worker, source  # noqa: E402


class WorkerTest(unittest.TestCase):
    def setUp(self):
        self.worker = Worker()
        self.addCleanup(self.worker.close)

    def error(self, record):
        self.assertEqual(record.kind, "E", record.body)
        return record.json()

    def value(self, record):
        self.assertEqual(record.kind, "V", record.body)
        return record.json()

    def test_hello_reports_the_python_version(self):
        self.assertEqual(self.worker.hello.kind, "H")
        self.assertEqual(self.worker.hello.json()["version"], sys.version.split()[0])

    def test_arguments_are_positional_named_or_one(self):
        self.worker.define_file(1, "def f(a, b=0): return [a, b]")
        records = self.worker.call(1, [1], [1, 2], {"a": 3, "b": 4}, "text")
        self.assertEqual([self.value(r) for r in records], [[1, 0], [1, 2], [3, 4], ["text", 0]])
        self.assertEqual([r.ticket for r in records], [0, 1, 2, 3])
        self.assertTrue(all(r.started <= r.ended for r in records))

    def test_skipped_tasks_do_not_run(self):
        self.worker.define_file(1, "def f(a): return a")
        self.worker.tasks(1, [[0], [1], [2], [3]], tokens=b"gssg")
        self.assertEqual([self.value(self.worker.record()) for _ in range(2)], [0, 3])

    def test_no_task_starts_without_its_token(self):
        self.worker.define_file(1, "def f(a): print(a)")
        self.worker.tasks(1, [[0], [1]], tokens=b"g")
        self.assertEqual(self.worker.record().ticket, 0)
        self.assertEqual(self.worker.outputs.written(), b"0\n")
        os.write(self.worker.tokens, b"g")
        self.assertEqual(self.worker.record().ticket, 1)

    def test_positions_are_reported_only_if_something_was_written(self):
        self.worker.define_file(1, "import sys\ndef f(out, err):\n sys.stdout.write(out); sys.stderr.write(err)")
        first, second, third = self.worker.call(1, ["ab", ""], ["", ""], ["", "xyz"])
        self.assertEqual((first.positions, second.positions, third.positions), ((2, 0), None, (2, 3)))

    def test_the_peak_memory_of_each_task_is_reported(self):
        text = (
            "import subprocess, sys, time\n"
            "def f(mib, how):\n"
            "  if how == 'child':\n"
            "    code = 'b = bytearray(%d << 20); b[:] = bytes(1) * len(b)' % mib\n"
            "    subprocess.run([sys.executable, '-S', '-c', code], check=True)\n"
            "  data = bytearray(mib << 20 if how != 'child' else 0)\n"
            "  data[::4096] = bytes(1) * len(data[::4096])\n"
            "  time.sleep(0.002)\n"
            "  if how == 'error': raise ValueError\n"
            "  return {1} if how == 'pickle' else mib\n"
        )
        self.worker.define_file(1, text)
        cases = [(150, "value"), (1, "value"), (150, "error"), (1, "pickle"), (150, "pickle"), (1, "error"), (200, "child"), (1, "value")]
        records = self.worker.call(1, *[list(case) for case in cases])
        peaks = [record.peak >> 20 for record in records]
        for (mib, how), peak in zip(cases, peaks):
            self.assertTrue(mib <= peak < (150 if mib == 1 else 700), (mib, how, peaks))

    def test_short_tasks_are_not_measured_each(self):
        self.worker.define_file(1, "def f(a): return a")
        records = self.worker.call(1, *[[n] for n in range(3000)])
        self.assertEqual([self.value(record) for record in records], list(range(3000)))
        measured = [record.ticket for record in records if record.peak]
        self.assertTrue(measured[0] == 0 and len(measured) < 1000, measured)

    def test_positions_are_exact_with_pipes_of_one_page(self):
        for pipe in (self.worker.outputs.out, self.worker.outputs.err):
            fcntl.fcntl(pipe, 1031, 4096)  # F_SETPIPE_SZ
        text = "import os, sys\ndef f(i, out, err):\n print(chr(97 + i % 26) * out); os.write(2, b'e' * err); os.system('echo child' if i % 50 == 0 else ':')\n"
        self.worker.define_file(1, text)
        lengths = [(i * i * 37 % 9000, i * 13 % 5000) for i in range(200)]
        records = self.worker.call(1, *[[i, out, err] for i, (out, err) in enumerate(lengths)])
        written, at = self.worker.outputs.written(), 0
        self.worker.outputs.written("err")
        err_at = 0
        for i, record in enumerate(records):
            self.value(record)
            expected = chr(97 + i % 26) * lengths[i][0] + "\n" + ("child\n" if i % 50 == 0 else "")
            self.assertEqual(written[at : record.positions[0]].decode(), expected)
            at, err_at = record.positions[0], err_at + lengths[i][1]
            self.assertEqual(record.positions[1], err_at)

    def test_a_child_that_makes_stdout_non_blocking_affects_only_its_task(self):
        text = "import os\ndef f(kind):\n  if kind == 'child': os.system('%s -c \"import os; os.set_blocking(1, False)\"')\n  return os.get_blocking(1)\n" % sys.executable
        self.worker.define_file(1, text)
        values = [self.value(record) for record in self.worker.call(1, ["child"], ["none"], ["none"])]
        self.assertEqual(values, [False, True, True])

    def test_redirecting_stdout_to_stderr_does_not_affect_the_next_task(self):
        text = "import os\ndef f(i):\n os.write(1, b'x' * i); os.dup2(2, 1); os.write(1, b'y')\n"
        self.worker.define_file(1, text)
        records = self.worker.call(1, *[[i] for i in range(50)])
        outs = [sum(range(i + 1)) for i in range(50)]
        self.assertEqual([record.positions for record in records], [(out, i + 1) for i, out in enumerate(outs)])

    def test_positions_include_output_of_children(self):
        self.worker.define_file(1, "import os\ndef f(): os.system('echo out; echo err >&2')")
        self.assertEqual(self.worker.call(1, [])[0].positions, (4, 4))

    def test_other_values_are_pickled(self):
        self.worker.define_file(1, "def f(k): return [{1, 2}, {(1,): 2}, float('inf'), 1 + 2j][k]")
        for record, value in zip(self.worker.call(1, [0], [1], [2], [3]), [{1, 2}, {(1,): 2}, float("inf"), 1 + 2j]):
            self.assertEqual(record.kind, "P")
            self.assertEqual(record.value(), value)
            self.assertEqual(record.rendering()[1], type(value).__name__)

    def test_values_of_shipped_classes_name_the_file_as_their_module(self):
        self.worker.define_file(1, "class C: pass\ndef f(): return C()", name="dir/shapes.py")
        (record,) = self.worker.call(1, [])
        self.assertEqual(record.kind, "P")
        self.assertIn(b"shapes", record.parts()[2])

    def test_values_that_cannot_be_encoded_are_errors(self):
        self.worker.define_file(1, "import threading\ndef f(): return threading.Lock()")
        error = self.error(self.worker.call(1, [])[0])
        self.assertEqual(error["ename"], "ValueNotSerializable")
        self.assertIn("_thread.lock", error["evalue"])

    def test_a_recursive_list_is_pickled(self):
        self.worker.define_file(1, "def f():\n a = []; a.append(a); return a")
        (record,) = self.worker.call(1, [])
        value = record.value()
        self.assertIs(value[0], value)
        self.assertEqual(record.rendering(), (["..."], "list"))

    def test_long_reprs_are_truncated(self):
        self.worker.define_file(1, "class C:\n def __repr__(self): return 'x' * 5000\ndef f(): return C()")
        self.assertEqual(len(self.worker.call(1, [])[0].rendering()[0]), 1000)

    def test_tracebacks_start_with_user_code(self):
        self.worker.define_file(1, "def g(x):\n    return 1 / x\ndef f(x):\n    return g(x)\n", name="their.py")
        error = self.error(self.worker.call(1, [0])[0])
        lines = [line for line in error["traceback"].splitlines() if "^" not in line and "~" not in line]
        self.assertEqual(
            lines,
            [
                "Traceback (most recent call last):",
                '  File "their.py", line 4, in f',
                "    return g(x)",
                '  File "their.py", line 2, in g',
                "    return 1 / x",
                "ZeroDivisionError: division by zero",
            ],
        )

    def test_wrong_arguments_are_reported_as_user_errors(self):
        self.worker.define_file(1, "def f(): pass")
        error = self.error(self.worker.call(1, [1])[0])
        self.assertEqual(error["ename"], "TypeError")
        self.assertNotIn("pcluster worker", error["traceback"])

    def test_errors_without_text_are_reported(self):
        self.worker.define_file(1, "class E(Exception):\n def __str__(self): raise ValueError\ndef f(): raise E")
        self.assertEqual(self.error(self.worker.call(1, [])[0])["ename"], "E")

    def test_two_versions_of_a_file_coexist(self):
        for number, text in ((1, "def f(): return g()\ndef g(): return 'old'"), (2, "def f(): return g()\ndef g(): 1/0")):
            self.worker.define_file(number, text)
        one, two, three = self.worker.call(1, [])[0], self.worker.call(2, [])[0], self.worker.call(1, [])[0]
        self.assertEqual((self.value(one), self.value(three)), ("old", "old"))
        self.assertIn("def g(): 1/0", self.error(two)["traceback"])

    def test_a_file_named_like_a_standard_module_does_not_shadow_it(self):
        self.worker.define_file(1, "def f(): return __name__", name="json.py")
        self.worker.define_file(2, "import json\ndef f(): return json.dumps(1)", name="two.py")
        self.assertEqual(self.value(self.worker.call(1, [])[0]), "pcluster_json")
        self.assertEqual(self.value(self.worker.call(2, [])[0]), "1")

    def test_interrupts_reach_only_the_task(self):
        self.worker.define_file(1, "import time\ndef f(s):\n print('started'); time.sleep(s)")
        os.kill(self.worker.pid, signal.SIGINT)
        self.worker.tasks(1, [[600]])
        while not self.worker.outputs.written():
            time.sleep(0.005)
        os.kill(self.worker.pid, signal.SIGINT)
        self.assertEqual(self.error(self.worker.record())["ename"], "KeyboardInterrupt")
        self.assertIsNone(self.value(self.worker.call(1, [0])[0]))

    def test_a_forked_child_that_returns_is_not_a_second_worker(self):
        self.worker.define_file(1, "import os\ndef f():\n pid = os.fork()\n if pid: os.waitpid(pid, 0)\n return pid > 0")
        self.assertEqual([self.value(r) for r in self.worker.call(1, [], [])], [True, True])

    def test_a_child_forked_without_python_is_not_a_second_worker(self):
        whole = worker_harness.script()
        self.assertIn("WIPE_ON_FORK = 18", whole)
        code = "import ctypes, os\nlibc = ctypes.PyDLL(None)\ndef f(i):\n pid = libc.fork()\n if pid: os.waitpid(pid, 0)\n return [i, pid > 0]"
        for advice in ("18", "9999"):  # 9999: a kernel without support
            script = whole.replace("WIPE_ON_FORK = 18", "WIPE_ON_FORK = " + advice)
            with unittest.mock.patch("worker_harness.script", return_value=script):
                worker = Worker()
            self.addCleanup(worker.close)
            worker.define_file(1, code)
            values = [self.value(record) for record in worker.call(1, *([i] for i in range(20)))]
            self.assertEqual(values, [[i, True] for i in range(20)])

    def test_a_closed_output_pipe_does_not_end_the_worker(self):
        code = "import os, sys\ndef f(i):\n sys.stdout.write('x')\n r, w = os.pipe()\n os.dup2(w, 1)\n os.close(r)\n os.close(w)\n return i"
        self.worker.define_file(1, code)
        self.assertEqual([self.value(record) for record in self.worker.call(1, [1], [2], [3])], [1, 2, 3])

    def test_the_first_task_excludes_the_time_to_load_its_module(self):
        self.worker.define_file(1, "import time\ntime.sleep(0.3)\ndef f(): return time.time()")
        before = time.time()
        (record,) = self.worker.call(1, [])
        self.assertGreaterEqual(record.started - before, 0.3)
        self.assertLessEqual(record.started, self.value(record))

    def test_pools_work_in_tasks(self):
        text = "import multiprocessing as m\ndef g(x): return x * x\ndef f():\n with m.get_context('fork').Pool(2) as p: return p.map(g, [1, 2, 3])"
        self.worker.define_file(1, text, name="pools.py")
        self.assertEqual(self.value(self.worker.call(1, [])[0]), [1, 4, 9])

    def test_directory_and_environment_are_restored(self):
        home = os.getcwd()
        text = "import os\ndef f(): return [os.getcwd(), os.environ.get('K')]"
        self.worker.define_file(1, text, cwd="/", env={"K": "v"}, interactive=True)
        self.worker.define_file(2, text, name="b.py", interactive=True)
        self.assertEqual(self.value(self.worker.call(1, [])[0]), ["/", "v"])
        self.assertEqual(self.value(self.worker.call(2, [])[0]), [home, None])
        self.worker.define_file(3, "def f(): pass", cwd="/no/such/dir")
        self.assertIn("/no/such/dir", self.error(self.worker.call(3, [])[0])["evalue"])

    def test_each_task_of_a_map_starts_in_its_directory_and_environment(self):
        text = (
            "import os\n"
            "def f(i):\n"
            "    seen = [os.getcwd(), os.environ.get('K')]\n"
            "    os.chdir('/usr'); os.environ['K'] = 'changed'\n"
            "    return seen\n"
        )
        self.worker.define_file(1, text, directory="/etc", env={"K": "v"})
        self.assertEqual([self.value(r) for r in self.worker.call(1, [0], [1], [2])], [["/etc", "v"]] * 3)
        # A function called in the interactive worker does not change its directory; executed code does.
        self.worker.define_file(2, "import os\ndef f(): os.chdir('/usr')", interactive=True)
        self.worker.define(3, {"kind": "execute", "code": "import os; os.getcwd()", "filename": "<exec>"})
        self.worker.define(4, {"kind": "execute", "code": "os.chdir('/etc')", "filename": "<exec>"})
        before = self.value(self.worker.call(3, None)[0])
        self.worker.call(2, [])
        self.assertEqual(self.value(self.worker.call(3, None)[0]), before)
        self.worker.call(4, None)
        self.assertEqual(self.value(self.worker.call(3, None)[0]), "/etc")

    def test_streams_are_restored_after_a_task_closes_wraps_or_redirects_them(self):
        statements = [
            "os.close(1)",
            "os.close(2)",
            "os.dup2(os.open('/dev/null', os.O_WRONLY), 1)",
            "sys.stdout.close()",
            "sys.stdout.detach()",
            "sys.stderr = None",
            "sys.stdout = io.StringIO()",
            "sys.stdout = open('/dev/null', 'w'); sys.stdout.close()",
            "w = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8'); w.write('hello'); w.flush(); del w",
            "sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding='utf-8')",
        ]
        self.worker.define_file(1, "import io, os, sys\ndef f(statement):\n    exec(statement)\n")
        self.worker.define_file(2, "import sys\ndef f(i):\n    print('out', i)\n    print('err', i, file=sys.stderr)\n")
        self.worker.define(3, {"kind": "execute", "code": "import io, os, sys; exec(statement)", "filename": "<exec>"})
        self.worker.define(4, {"kind": "push"})
        out = err = 0
        for statement in statements:
            for interactive in (False, True):
                if interactive and statement == "sys.stdout = io.StringIO()":
                    continue  # a working replacement is kept, like in a notebook
                if interactive:
                    self.worker.call(4, {"statement": statement})
                self.worker.call(3 if interactive else 1, None if interactive else [statement])
                at = self.worker.outputs.sizes()
                (record,) = self.worker.call(2, [7])
                self.assertEqual(record.kind, "V", (statement, record.body))
                self.assertEqual(record.positions, (at[0] + 6, at[1] + 6), statement)

    def test_leftovers_of_user_code_do_not_end_an_idle_worker(self):
        text = (
            "import ctypes, os, signal, threading, time\n"
            "class Late(BaseException): pass\n"
            "def late(*_): raise Late\n"
            "def f(kind):\n"
            "    main = threading.main_thread().ident\n"
            "    def throw():\n"
            "        for _ in range(300):\n"
            "            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(main), ctypes.py_object(Late))\n"
            "            time.sleep(0.0003)\n"
            "    if kind == 'alarm':\n"
            "        signal.signal(signal.SIGALRM, late); signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0003)\n"
            "    elif kind == 'thread':\n"
            "        threading.Thread(target=throw, daemon=True).start()\n"
            "    elif kind == 'handler':\n"
            "        signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "    elif kind == 'stop':\n"
            "        signal.setitimer(signal.ITIMER_REAL, 0)\n"
            "    return kind\n"
        )
        self.worker.define_file(1, text)
        self.assertEqual(self.value(self.worker.call(1, ["handler"])[0]), "handler")
        for _ in range(20):
            os.kill(self.worker.pid, signal.SIGINT)
            self.ends(1, ["x"])
        for kind in ("alarm", "thread"):
            self.ends(1, [kind])
            for i in range(300):
                # An exception may hit a task, which then fails; each task ends once, and the others continue.
                self.ends(1, [i], [i], [i])
            if kind == "alarm":
                while self.ends(1, ["stop"])[-1].kind != "V":
                    pass  # the alarm hit this task too
            while True:
                values = [record.kind for record in self.ends(1, *[[i] for i in range(20)])]
                if values == ["V"] * 20:
                    break

    def ends(self, number, *inputs):
        """Runs tasks until each has ended; returns the first report of each."""
        first = self.worker.tasks(number, list(inputs))
        ended = {}
        while len(ended) < len(inputs):
            record = self.worker.record()
            self.assertIsNotNone(record, "the worker has ended")
            if record.ticket >= first:
                ended.setdefault(record.ticket, record)
        return [ended[ticket] for ticket in sorted(ended)]

    def test_it_exits_like_a_python_program(self):
        place = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, place)
        text = (
            "import atexit, os, threading, time\n"
            "log = open(%r + '/log', 'w')\n"
            "log.write('written')\n"
            "class C:\n"
            "    def __del__(self, open=open): open(%r + '/del', 'w').close()\n"
            "def f(with_object):\n"
            "    atexit.register(lambda: open(%r + '/atexit', 'w').close())\n"
            "    threading.Thread(target=lambda: (time.sleep(0.2), open(%r + '/thread', 'w').close())).start()\n"
            "    if with_object: global c; c = C()\n"
        ) % ((place,) * 4)
        for with_object, left in ((False, ["atexit", "log", "thread"]), (True, ["atexit", "del", "log", "thread"])):
            worker = Worker()
            self.addCleanup(worker.close)
            worker.define_file(1, text)
            worker.call(1, [with_object])
            os.close(worker.frames)
            self.assertEqual(worker.wait(), 0)
            self.assertEqual(sorted(os.listdir(place)), left)
            with open(os.path.join(place, "log")) as file:
                self.assertEqual(file.read(), "written")
            for name in left:
                os.remove(os.path.join(place, name))

    def test_user_files_do_not_shadow_the_standard_library_of_the_worker(self):
        place = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, place)
        for name in ("json", "struct", "types", "queue", "signal", "code", "traceback", "helper"):
            with open(os.path.join(place, name + ".py"), "w") as file:
                file.write("MINE = 1\n")
        for environment in ({}, {"PYTHONPATH": place}, {"PYTHONPATH": ":/nowhere"}):
            worker = Worker(cwd=place, env=dict(os.environ, **environment))
            self.addCleanup(worker.close)
            worker.define_file(1, "import json, helper\ndef f(): return [hasattr(json, 'MINE'), helper.MINE]")
            self.assertEqual(self.value(worker.call(1, [])[0]), [False, 1])

    def test_execute_push_pull_and_clear(self):
        self.worker.define(1, {"kind": "push"})
        self.worker.define(2, {"kind": "execute", "code": "if True:\n  b = a * 2\nb", "filename": "<exec>"})
        self.worker.define(3, {"kind": "pull"})
        self.worker.call(1, {"a": 21})
        self.assertEqual(self.value(self.worker.call(2, None)[0]), 42)
        self.assertEqual(self.value(self.worker.call(3, ["a", "b"])[0]), {"a": 21, "b": 42})
        self.worker.frame(b"C", 0, b"")
        self.assertEqual(self.error(self.worker.call(3, ["a"])[0])["ename"], "NameError")

    def test_all_strings_are_preserved(self):
        self.worker.define_file(1, "def f(x): return x")
        texts = ["", "é", "\U0001f600", "\ud800", "\x00", "a\nb"]
        self.assertEqual([r.value() for r in self.worker.call(1, *[[t] for t in texts])], texts)

    def test_big_values_are_sent_whole(self):
        self.worker.define_file(1, "def f(n): return 'x' * n")
        self.assertEqual(len(self.value(self.worker.call(1, [5_000_000])[0])), 5_000_000)

    def test_it_exits_with_its_engine(self):
        os.close(self.worker.frames)
        self.assertEqual(self.worker.wait(), 0)
        self.assertEqual(self.worker.outputs.written("err"), b"")

    def test_stdin_is_empty(self):
        self.worker.define_file(1, "def f(): return input()")
        self.assertEqual(self.error(self.worker.call(1, [])[0])["ename"], "EOFError")


class SourcesTest(unittest.TestCase):
    def test_the_sources_are_of_python_3_8(self):
        for name in PARTS + ("rendering.py", "ipython.py", "bootstrap.py"):
            ast.parse(source(name), feature_version=(3, 8))

    def test_the_bootstrap_names_the_required_python(self):
        self.assertIn("requires Python 3.8 or later", source("bootstrap.py"))
        self.assertNotIn('f"', source("bootstrap.py"))


if __name__ == "__main__":
    unittest.main()
