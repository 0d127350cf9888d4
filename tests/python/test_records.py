"""Records reach the engine complete despite threads, signal handlers, asynchronous exceptions and forks.

`KERNEL` replaces ipython.py: it runs the code of a request, which may publish messages.
"""
import collections
import json
import os
import struct
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from worker_harness import Worker  # noqa: E402

KERNEL = """
worker = {}
def start(worker_globals): worker.update(worker_globals)
def has_background(): return False
def run_background(descriptor): pass
def handle(meta, parts, ticket):
    def publish(text, *buffers): worker["publish"](ticket, "display_data", "displaypub", {"text": text}, buffers)
    names = {"publish": publish}
    exec(bytes(parts[2]).decode(), names)
    return {"status": "ok"}, names.get("buffers", [])
"""
PRELUDE = """
import ctypes, os, signal, sys, threading, time
class Raised(BaseException): pass
raised = 0
def raising(*_):
    global raised
    raised += 1
    raise Raised
"""


def parts_of(body):
    (count,) = struct.unpack_from("<I", body)
    sizes = struct.unpack_from("<%dQ" % count, body, 4)
    offset, parts = 4 + 8 * count, []
    for size in sizes:
        parts.append(body[offset : offset + size])
        offset += size
    assert offset == len(body), "the length of the record does not match its parts"
    return parts


class RecordsTest(unittest.TestCase):
    def setUp(self):
        self.worker = Worker()
        self.addCleanup(self.worker.close)

    def start_kernel(self):
        self.worker.frame(b"M", 0, KERNEL.encode())

    def request(self, code, ticket=1):
        parts = [json.dumps({"method": "apply"}).encode(), b"{}", b"{}", (PRELUDE + code).encode()]
        head = struct.pack("<I%dQ" % len(parts), len(parts), *(len(part) for part in parts))
        self.worker.frame(b"R", ticket, head + b"".join(parts))
        os.write(self.worker.tokens, b"g")

    def published_until_reply(self):
        """Published texts and buffers, and the buffers of the reply. Fails for a malformed record."""
        published = []
        while True:
            record = self.worker.record()
            self.assertIsNotNone(record, "the worker has ended")
            self.assertIn(record.kind, "IA")
            meta, content, *buffers = parts_of(record.body)
            if record.kind == "A":
                self.assertEqual(json.loads(meta)["status"], "ok", content[-3000:])
                return published, buffers
            self.assertEqual(json.loads(meta), {"type": "display_data", "topic": "displaypub"})
            published.append((json.loads(content)["text"], buffers))

    def test_threads_publish_while_results_are_written(self):
        self.start_kernel()
        self.request(
            """
stop = sys.stop = []
def report(name, size):
    count = 0
    while not stop:
        publish("%d %d" % (name, count), bytes([name]) * size)
        count += 1
for name, size in enumerate([1, 100, 5_000, 300_000]):
    threading.Thread(target=report, args=(name, size)).start()
"""
        )
        published, _ = self.published_until_reply()
        for ticket in range(2, 62):
            code = "import sys\nbuffers = [b'x' * 2_000_000, memoryview(bytearray(b'y' * 100_000))]"
            self.request(code + ("\nsys.stop.append(1)" if ticket == 61 else ""), ticket)
            more, buffers = self.published_until_reply()
            published += more
            self.assertTrue(buffers == [b"x" * 2_000_000, b"y" * 100_000])
        counts = collections.defaultdict(list)
        for text, (buffer,) in published:
            name, count = map(int, text.split())
            counts[name].append(count)
            self.assertEqual(len(buffer), buffer.count(name))
        for of_one in counts.values():
            self.assertEqual(of_one, list(range(len(of_one))))

    def test_signal_handlers_raise_while_something_is_published(self):
        self.start_kernel()
        self.request(
            """
signal.signal(signal.SIGALRM, raising)
count = 0
def until_raised():
    global count
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0002 + 0.00005 * (raised % 50))
        while True:
            count += 1
            publish("%d" % count, b"z" * (1_000_000 if count % 3 else 10))
    except Raised:
        pass
while raised < 400:
    try: until_raised()
    except Raised: pass  # before its try
"""
        )
        published, _ = self.published_until_reply()
        counts = [int(text) for text, _ in published]
        self.assertEqual(counts, sorted(set(counts)))
        for text, (buffer,) in published:
            self.assertTrue(buffer == b"z" * (1_000_000 if int(text) % 3 else 10))
        self.request("buffers = [b'next']", 2)
        self.assertEqual(self.published_until_reply(), ([], [b"next"]))

    def test_signal_handlers_publish_while_something_is_published(self):
        self.start_kernel()
        self.request(
            """
handled = 0
def handler(*_):
    global handled
    handled += 1
    publish("handler %d" % handled, b"h" * (1_000_000 if handled % 2 else 5))
    if handled < 200: signal.setitimer(signal.ITIMER_REAL, 0.0002 + 0.00005 * (handled % 50))
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.001)
count = 0
while handled < 200:
    count += 1
    publish("main %d" % count, b"m" * (1_000_000 if count % 2 else 5))
"""
        )
        published, _ = self.published_until_reply()
        for name in ("handler", "main"):
            counts = [int(text.split()[1]) for text, _ in published if text.startswith(name)]
            self.assertEqual(counts, list(range(1, len(counts) + 1)))
        for text, (buffer,) in published:
            self.assertTrue(buffer == text[:1].encode() * (1_000_000 if int(text.split()[1]) % 2 else 5))

    def test_exceptions_from_other_threads_are_raised_while_something_is_published(self):
        self.start_kernel()
        self.request(
            """
def report():
    global count
    while len(caught) < 200:
        try:
            while True:
                count += 1
                publish("%d" % count, b"t" * (500_000 if count % 3 else 10))
        except Raised:
            caught.append(1)
def raise_in(thread):
    while thread.is_alive():
        if len(caught) < 200:
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(Raised))
        time.sleep(0.001)
caught, count = [], 0
threading.excepthook = lambda _: None
thread = threading.Thread(target=report)
thread.start()
raise_in(thread)
"""
        )
        published, _ = self.published_until_reply()
        counts = [int(text) for text, _ in published]
        self.assertEqual(counts, sorted(set(counts)))
        for text, (buffer,) in published:
            self.assertTrue(buffer == b"t" * (500_000 if int(text) % 3 else 10))

    def test_forked_children_report_nothing(self):
        self.start_kernel()
        with tempfile.TemporaryDirectory() as folder:
            self.request(
                """
import multiprocessing
folder = %r
stop = []
def report():
    while not stop: publish("thread", b"p" * 200_000)
reporter = threading.Thread(target=report)
reporter.start()
def work(name):
    files = [open(os.path.join(folder, "%%s-%%d" %% (name, k)), "w") for k in range(20)]
    publish("child"); publish("child", b"c" * 100_000)
    for file in files: file.write("data"); file.close()
for i in range(40):
    pid = os.fork()
    if pid == 0:
        try: work("fork-%%d" %% i)
        finally: os._exit(0)
    os.waitpid(pid, 0)
libc = ctypes.PyDLL(None)  # a fork that bypasses Python
pid = libc.fork()
if pid == 0:
    publish("child"); os._exit(0)
os.waitpid(pid, 0)
import __main__
__main__.work, work.__module__ = work, "__main__"
with multiprocessing.get_context("fork").Pool(2) as pool:
    pool.map(work, ["pool-%%d" %% i for i in range(20)])
publish("parent")
stop.append(1)
reporter.join()
"""
                % folder
            )
            published, _ = self.published_until_reply()
            self.assertEqual({text for text, _ in published}, {"thread", "parent"})
            names = os.listdir(folder)
            self.assertEqual(len(names), 60 * 20)
            for name in names:
                with open(os.path.join(folder, name)) as file:
                    self.assertEqual(file.read(), "data")
        self.assertIn(b"display output of a forked child process is not shown", self.worker.outputs.written("err"))

    def test_writing_a_long_value_continues_after_a_signal_handler_has_raised(self):
        # The pipe is full when the handler raises: the harness starts reading after that.
        self.worker.define_file(
            1,
            """
import os, signal
class Raised(BaseException): pass
def raising(*_):
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.close(fifo)
    raise Raised
def f(descriptor):
    global fifo
    if descriptor is None: return 1
    fifo = os.open(descriptor, os.O_WRONLY)
    signal.signal(signal.SIGALRM, raising)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    return "v" * 3_000_000
""",
        )
        with tempfile.TemporaryDirectory() as folder:
            fifo = os.path.join(folder, "fifo")
            os.mkfifo(fifo)
            first = self.worker.tasks(1, [[fifo]])
            with open(fifo, "rb") as raised:
                raised.read()
            record = self.worker.record()
            self.assertEqual((record.kind, record.ticket, record.json()), ("V", first, "v" * 3_000_000))
            last = self.worker.tasks(1, [[None]])
            while record.ticket == first:  # it may be reported twice
                self.assertEqual(record.json(), "v" * 3_000_000)
                record = self.worker.record()
            self.assertEqual((record.kind, record.ticket, record.json()), ("V", last, 1))

    def test_published_messages_are_written_before_python_exits(self):
        self.start_kernel()
        self.request("publish('last', b'w' * 200_000); os._exit(3)")
        record = self.worker.record()
        self.assertEqual(len(parts_of(record.body)[2]), 200_000)
        self.assertIsNone(self.worker.record())


if __name__ == "__main__":
    unittest.main()
