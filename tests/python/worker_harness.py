"""Starts the worker like the engine, over raw pipes, and implements the engine's side of the protocol."""
import fcntl
import json
import mmap
import os
import pickle
import select
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCES = os.path.join(HERE, "..", "..", "src", "engine", "worker")
FRAME = struct.Struct("<cxxxIQ")
RECORD = struct.Struct("<cBxxIQdd")


PARTS = ("state.py", "records.py", "values.py", "bundle.py", "code.py", "frames.py", "streams.py", "worker.py", "interpreter.py")


def script():
    """The script, joined from its modules like in interpreter.rs."""
    parts = [source(name) for name in PARTS]
    parts.insert(3, "RENDERING = r'''" + source("rendering.py") + "'''\n")
    return "\n".join(parts)


def source(name):
    with open(os.path.join(SOURCES, name)) as file:
        return file.read()


class Record:
    def __init__(self, kind, flags, ticket, started, ended, body):
        self.kind, self.ticket, self.started, self.ended = kind.decode(), ticket, started, ended
        self.positions = struct.unpack_from("<QQ", body) if flags & 1 else None
        body = body[16:] if flags & 1 else body
        self.peak = struct.unpack_from("<Q", body)[0] if flags & 2 else None
        self.body = body[8:] if flags & 2 else body

    def json(self):
        return json.loads(self.body)

    def parts(self):
        """The parts of the body."""
        (count,) = struct.unpack_from("<I", self.body)
        sizes = struct.unpack_from("<%dQ" % count, self.body, 4)
        offset, parts = 4 + 8 * count, []
        for size in sizes:
            parts.append(self.body[offset : offset + size])
            offset += size
        return parts

    def value(self):
        """The exact return value of the function."""
        return pickle.loads(self.parts()[2]) if self.kind == "P" else self.json()

    def rendering(self):
        """The human-readable rendering, and the type."""
        meta, rendering, _ = self.parts()
        return json.loads(rendering), json.loads(meta)["type"]


class Outputs:
    """The engine's side of stdout and stderr: pipes, and counts of bytes read."""

    def __init__(self):
        self.memory = os.memfd_create("counts", os.MFD_CLOEXEC)
        os.ftruncate(self.memory, 24)
        self.counts = memoryview(mmap.mmap(self.memory, 24)).cast("Q")
        self.watch = select.epoll()
        (self.out, self.out_writer), (self.err, self.err_writer) = os.pipe(), os.pipe()
        self.bytes = {self.out: b"", self.err: b""}
        self.lock = threading.Lock()
        for pipe in (self.out, self.err):
            os.set_blocking(pipe, False)
            self.watch.register(pipe, select.EPOLLIN)
        self.reads = True
        self.closing, self.close_now = os.pipe()
        self.thread = threading.Thread(target=self.keep_reading, daemon=True)
        self.thread.start()

    def keep_reading(self):
        waiting = select.poll()
        for descriptor in (self.out, self.err, self.closing):
            waiting.register(descriptor, select.POLLIN)
        while self.closing not in [descriptor for descriptor, _ in waiting.poll()]:
            if self.reads:
                for pipe in (self.out, self.err):
                    self.take(pipe)
            else:
                select.select([self.closing], [], [], 0.005)

    def take(self, pipe):
        with self.lock:
            self.counts[0] += 1
            try:
                data = os.read(pipe, 1 << 20)
            except BlockingIOError:
                data = b""
            self.counts[1 if pipe == self.out else 2] += len(data)
            self.counts[0] += 1
            self.bytes[pipe] += data

    def written(self, name="out"):
        """All output written so far."""
        pipe = getattr(self, name)
        self.take(pipe)
        return self.bytes[pipe]

    def sizes(self):
        return len(self.written("out")), len(self.written("err"))

    def in_pipe(self):
        return struct.unpack("i", fcntl.ioctl(self.out, termios.FIONREAD, b"\0" * 4))[0]

    def for_worker(self):
        return [self.out_writer, self.err_writer, self.memory, self.watch.fileno()]

    def close_writers(self):
        for descriptor in (self.out_writer, self.err_writer):
            os.close(descriptor)

    def close(self):
        os.close(self.close_now)
        self.thread.join()
        self.watch.close()
        for descriptor in (self.out, self.err, self.memory, self.closing):
            os.close(descriptor)


class Worker:
    def __init__(self, python=sys.executable, **options):
        file = tempfile.TemporaryFile()
        file.write(script().encode())
        file.seek(0)
        frames_in, self.frames = os.pipe()
        self.records, records_out = os.pipe()
        tokens_in, self.tokens = os.pipe()
        self.outputs = Outputs()
        self.control, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        kept = [file.fileno(), far.fileno()]
        command = [python, "-c", source("bootstrap.py")] + [str(fd) for fd in kept]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, pass_fds=kept, start_new_session=True, **options)
        file.close()
        far.close()
        files = [frames_in, records_out, tokens_in] + self.outputs.for_worker()
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("=7i", *files))]
        self.control.sendmsg([struct.pack("<I?", 1, False) + b"engine.1"], rights)
        report = self.control.recv(4096)
        self.number, self.pid = struct.unpack("<Ii", report[1:])
        for fd in files[:3]:
            os.close(fd)
        self.outputs.close_writers()
        self.reader = os.fdopen(self.records, "rb")
        self.next = 0
        self.bundles = []
        self.hello = self.record()

    def frame(self, kind, ticket, body):
        data = FRAME.pack(kind, ticket, len(body)) + body
        while data:
            data = data[os.write(self.frames, data) :]

    def record(self):
        """The next record, or None if the worker has ended."""
        head = self.reader.read(RECORD.size)
        if len(head) < RECORD.size:
            return None
        kind, flags, ticket, length, started, ended = RECORD.unpack(head)
        return Record(kind, flags, ticket, started, ended, self.reader.read(length))

    def define(self, number, work, place=None, **options):
        self.frame(b"D", 0, json.dumps([number, {"work": work, "options": options}, place]).encode())

    def define_file(self, number, text, function="f", name="shipped.py", **options):
        """Defines a map with a bundle of one file, written like by the engine."""
        directory = tempfile.TemporaryDirectory()
        self.bundles.append(directory)
        entry = os.path.basename(name)
        if entry[:-3] in getattr(sys, "stdlib_module_names", ["json"]):
            entry = "pcluster_" + entry
        with open(os.path.join(directory.name, entry), "w") as file:
            file.write(text)
        named = {"hash": "", "name": name, "entry": entry, "origin": "", "moved": {entry: name}}
        work = {"kind": "call", "from": {"bundle": named}, "function": function}
        self.define(number, work, {"directory": directory.name}, **options)

    def tasks(self, number, inputs, tokens=None):
        """Sends tasks, by default with a start token for each; returns the first ticket."""
        first = self.next
        self.next += len(inputs)
        self.texts(number, first, [json.dumps(one).encode() for one in inputs])
        os.write(self.tokens, b"g" * len(inputs) if tokens is None else tokens)
        return first

    def texts(self, number, first, texts):
        """Sends a frame of tasks; inputs are JSON texts."""
        self.frame(b"T", first, b"[%d,[\n" % number + b",\n".join(texts) + b"\n]]")

    def call(self, number, *inputs):
        self.tasks(number, list(inputs))
        return [self.record() for _ in inputs]

    def wait(self):
        """Waits for the end of the worker; returns its wait status."""
        kind, pid, status = struct.unpack("<cii", self.control.recv(4096))
        assert (kind, pid) == (b"X", self.pid), (kind, pid)
        return status

    def close(self):
        self.control.close()
        for bundle in self.bundles:
            bundle.cleanup()
        for fd in (self.frames, self.tokens):
            try:
                os.close(fd)
            except OSError:
                pass
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()
            self.reader.close()
            self.outputs.close()
