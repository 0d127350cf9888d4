"""The engine's Python: runs tasks one after the other and says how each went.

Started by the engine with the numbers of private file descriptors as arguments:
frames (in), records (out), tokens (in: one byte per task, "g" begin it, "s" skip it), and twins of stdout and stderr.
Standard library only, Python 3.8 syntax. The frames are described in protocol.rs.
"""
import base64
import builtins
import functools
import importlib
import importlib.util
import json
import linecache
import mmap
import os
import pickle
import signal
import struct
import sys
import time
import traceback
import types

FRAMES, RECORDS, TOKENS, STDOUT, STDERR = (int(number) for number in sys.argv[2:7])
# It is ready only when IPython's shell has run what it runs at its start.
greets_late = sys.argv[7:] == ["shell"]
for descriptor in (FRAMES, RECORDS, TOKENS, STDOUT, STDERR):
    os.set_inheritable(descriptor, False)

SELF = "<pcluster worker>"
PYTHON = "Python %s (%s)" % (sys.version.split()[0], sys.executable)
FRAME = struct.Struct("<cxxxIQ")  # kind, first ticket, length of the body
RECORD = struct.Struct("<cBxxIQdd")  # kind, flags, ticket, length of the body, started, ended
POSITIONS = struct.Struct("<QQ")  # ends of stdout and stderr; in front of the body where flags is 1
REPR_LENGTH = 1000
TEXT_LENGTH = 200_000
SMALL = 1 << 16  # bytes that are copied to be written at once
ALIGNED = 1 << 63  # in the number of a file's buffers
RETRY_AFTER = 2.0  # seconds until a definition that failed is tried again

encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode
encode_ascii = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
read, write, seek, clock, pack = os.read, os.write, os.lseek, time.time, RECORD.pack

# True while code of the user runs: only then does SIGINT interrupt.
running = False
# How far stdout and stderr have been reported.
reported_out = reported_err = 0
# A forked child of a task is not the worker.
is_worker = True


def interrupt(number, frame):
    global running
    if running:
        running = False
        raise KeyboardInterrupt


def forked():
    global is_worker, running
    is_worker = running = False
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for descriptor in (FRAMES, RECORDS, TOKENS):
        os.close(descriptor)


# ---- what is told to the engine


def write_all(data):
    done = write(RECORDS, data)
    if done < len(data):
        view = memoryview(data)
        while done < len(view):
            done += write(RECORDS, view[done:])


def flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


def record(kind, ticket, started, ended, body):
    """One record, with the positions of stdout and stderr where something was written."""
    global reported_out, reported_err
    flush()
    out, err = seek(STDOUT, 0, 2), seek(STDERR, 0, 2)
    if out == reported_out and err == reported_err:
        write_all(pack(kind, 0, ticket, len(body), started, ended) + body)
    else:
        reported_out, reported_err = out, err
        write_all(pack(kind, 1, ticket, len(body) + 16, started, ended) + POSITIONS.pack(out, err) + body)


def record_parts(kind, ticket, started, ended, parts):
    """A record whose body is several parts: their number, their lengths, then they."""
    global reported_out, reported_err
    flush()
    parts = [memoryview(part).cast("B") if not isinstance(part, bytes) else part for part in parts]
    sizes = [len(part) for part in parts]
    reported_out, reported_err = seek(STDOUT, 0, 2), seek(STDERR, 0, 2)
    head = POSITIONS.pack(reported_out, reported_err) + struct.pack("<I%dQ" % len(sizes), len(sizes), *sizes)
    head = pack(kind, 1, ticket, len(head) + sum(sizes), started, ended) + head
    if sum(sizes) <= SMALL:  # one write wakes the engine once
        write_all(b"".join([head] + parts))
        return
    write_all(head)
    for part in parts:
        write_all(part)


def cut(text, length):
    if len(text) <= length:
        return text
    half = length // 2
    return "%s\n[... %d characters cut ...]\n%s" % (text[:half], len(text) - 2 * half, text[-half:])


def encoded(value):
    """JSON text of plain data, whatever strings are in it."""
    text = encode(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return encode_ascii(value).encode()


def error_body(ename, evalue, lines=""):
    return encoded({"ename": ename, "evalue": cut(evalue, TEXT_LENGTH), "traceback": cut(lines, TEXT_LENGTH)})


def text_of(error):
    try:
        return str(error)
    except Exception as failure:
        return "<str() of the %s failed: %s>" % (type(error).__name__, type(failure).__name__)


def own_frames_hidden(trace):
    while trace is not None and trace.tb_frame.f_code.co_filename == SELF:
        trace = trace.tb_next
    return trace


def formatted(error):
    try:
        return "".join(traceback.format_exception(type(error), error, own_frames_hidden(error.__traceback__)))
    except Exception:
        return "%s: %s\n" % (type(error).__name__, text_of(error))


def encode_value(value):
    """(kind, body) of a value: JSON where it can be, otherwise a pickle with its repr."""
    try:
        return b"V", encoded(value)
    except (TypeError, ValueError, RecursionError, OverflowError):
        pass
    try:
        shown = repr(value)
    except Exception as error:
        shown = "<repr() failed: %s>" % text_of(error)
    shown = shown if len(shown) <= REPR_LENGTH else shown[: REPR_LENGTH - 1] + "\u2026"
    try:
        pickled = pickle.dumps(value, protocol=4)
    except Exception as error:
        name = type(value).__module__ + "." + type(value).__qualname__
        evalue = "the value is of type %s, which neither JSON nor pickle can hold (%s): %s" % (name, text_of(error), shown)
        return b"E", error_body("ValueNotSerializable", evalue)
    return b"P", encoded({"pickled": base64.b64encode(pickled).decode(), "repr": shown})


# ---- what tasks run


class Unusable(Exception):
    """A definition from which no function can be had."""

    def __init__(self, ename, evalue, lines=""):
        super().__init__(evalue)
        self.body = error_body(ename, evalue, lines)


main = types.ModuleType("__main__")
main.__builtins__ = builtins
namespace = main.__dict__
# What `__name__` of a shipped file is, to the definition that last held it in sys.modules.
shipped = {}


def module_name(path):
    """A file's module name, made unlike those of modules that are there already."""
    name = os.path.splitext(os.path.basename(path))[0]
    if not name.isidentifier():
        return "pcluster_file"
    if name in shipped:
        return name
    taken = name in sys.modules or name in getattr(sys, "stdlib_module_names", sys.builtin_module_names)
    return "pcluster_" + name if taken else name


def remember_source(name, text):
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)


@functools.lru_cache(maxsize=32)
def compiled(text, place):
    """Maps of one function come one after the other."""
    return compile(text, place, "exec", dont_inherit=True)


def hint(doing):
    return "%s with %s; another interpreter is set as `engine: python:` in the profile" % (doing, PYTHON)


def load_function(source, function):
    if "module" in source:
        place = source["module"]["module"]
        try:
            module = importlib.import_module(place)
        except BaseException as error:
            raise failed_import(error, "importing %s" % place)
    else:
        place, text = source["file"]["name"], source["file"]["text"]
        remember_source(place, text)
        try:
            code = compiled(text, place)
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            where = ", line %d" % line if line else ""
            what = "%s%s does not compile: %s" % (place, where, getattr(error, "msg", None) or text_of(error))
            lines = "".join(traceback.format_exception_only(type(error), error))
            raise Unusable(type(error).__name__, hint(what), lines)
        name = module_name(place)
        module = types.ModuleType(name)
        module.__file__ = place
        sys.modules[name] = shipped[name] = module
        try:
            exec(code, module.__dict__)
        except BaseException as error:
            raise failed_import(error, "running the top level of %s" % place)
    found = module
    for part in function.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
            there = "it has " + ", ".join(sorted(names)[:20]) if names else "it has no functions"
            raise Unusable("AttributeError", "%s has no function %r; %s" % (place, function, there))
    if not callable(found):
        raise Unusable("TypeError", "%s:%s is a %s, not a function" % (place, function, type(found).__name__))
    return module, found


def failed_import(error, doing):
    message = "%s (%s)" % (text_of(error), hint(doing))
    if isinstance(error, ModuleNotFoundError):
        message = "%s (%s; install the module there)" % (text_of(error), hint(doing))
    return Unusable(type(error).__name__, message, formatted(error))


def call(function, arguments):
    if type(arguments) is list:
        return function(*arguments)
    if type(arguments) is dict:
        return function(**arguments)
    return function(arguments)


def push(names):
    namespace.update(names)


def pull(names):
    missing = [name for name in names if name not in namespace]
    if missing:
        raise NameError("not defined on this engine: %s" % ", ".join(missing))
    return {name: namespace[name] for name in names}


def execute(code, filename):
    """Runs source in the engine's namespace; the value is that of a last expression."""
    import ast

    remember_source(filename, code)
    tree = ast.parse(code, filename)
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr):
        last = ast.Expression(tree.body.pop().value)
    if not filename.startswith("<"):
        namespace["__file__"] = filename
    try:
        exec(compile(tree, filename, "exec", dont_inherit=True), namespace)
        return eval(compile(last, filename, "eval", dont_inherit=True), namespace) if last else None
    except SystemExit as leaving:
        if leaving.code in (None, 0):
            return None
        raise


class Definition:
    """What one map runs."""

    def __init__(self, work, options):
        self.work = work
        self.cwd = options.get("cwd")
        self.directory = None if self.cwd else options.get("directory")
        self.env = options.get("env") or {}
        self.run = self.module = self.failure = None
        self.tried = 0.0

    def prepare(self):
        """Makes `run`, a function of a task's input; raises Unusable."""
        if self.run is None:
            if self.failure is not None and clock() - self.tried < RETRY_AFTER:
                raise self.failure
            self.tried = clock()
            kind = self.work["kind"]
            if kind == "call":
                try:
                    self.module, function = load_function(self.work["from"], self.work["function"])
                except Unusable as failure:
                    self.failure = failure
                    raise
                self.run = lambda arguments: call(function, arguments)
                self.function = function
            elif kind == "execute":
                code, filename = self.work["code"], self.work["filename"]
                self.run = lambda _: execute(code, filename)
            elif kind == "push":
                self.run = push
            elif kind == "pull":
                self.run = pull
            else:
                raise Unusable("TypeError", "tasks of kind %r are unknown to this worker" % kind)
        if self.module is not None and shipped.get(self.module.__name__, self.module) is not self.module:
            # Another version of the same file has run since.
            sys.modules[self.module.__name__] = shipped[self.module.__name__] = self.module
            remember_source(self.work["from"]["file"]["name"], self.work["from"]["file"]["text"])
        return self.run


class Surroundings:
    """Working directory and environment of a map, for the time of one task."""

    def __init__(self, definition):
        self.cwd, self.env = definition.cwd, definition.env

    def __enter__(self):
        self.old = {name: os.environ.get(name) for name in self.env}
        self.back = os.getcwd() if self.cwd else None
        if self.cwd:
            os.chdir(os.path.expanduser(self.cwd))
        os.environ.update(self.env)

    def __exit__(self, *_):
        for name, value in self.old.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if self.back:
            os.chdir(self.back)


def run_in_surroundings(definition):
    run = definition.run

    def inner(arguments):
        with Surroundings(definition):
            return run(arguments)

    return inner


definitions = {}


def may_begin():
    """Waits for the token of the next task."""
    token = read(TOKENS, 1)
    if not token:
        leave()
    return token == b"g"


def leave():
    flush()
    sys.exit(0)


def ended_with(error, ticket, started):
    """A task ended with an exception."""
    ended = clock()
    if not is_worker:
        os._exit(1)
    if isinstance(error, Unusable):
        body = error.body
    else:
        evalue = text_of(error)
        if isinstance(error, KeyboardInterrupt) and not evalue:
            evalue = "interrupted"
        body = error_body(type(error).__name__, evalue, formatted(error))
    record(b"E", ticket, started, ended, body)


def go_to(directory):
    """Changes to where a map was submitted, if this host has it; returns the way back, if any."""
    try:
        back = os.getcwd()
        if directory and directory != back:
            os.chdir(directory)
            return back
    except OSError:
        pass
    return None


def run_tasks(first, number, inputs):
    """Runs a batch of one map's tasks: tickets first, first + 1, ..."""
    global running
    definition = definitions[number]
    back = go_to(definition.directory)
    plain = not definition.cwd and not definition.env
    ticket = first - 1
    for arguments in inputs:
        ticket += 1
        token = read(TOKENS, 1)
        if token != b"g":
            if not token:
                leave()
            continue
        started = clock()
        try:
            running = True
            run = definition.prepare() if plain else prepare_in_surroundings(definition)
            value = run(arguments)
            running = False
            ended = clock()
            if not is_worker:
                os._exit(0)
            if value is None:
                kind, body = b"V", b"null"
            elif type(value) is int:
                kind, body = encode_integer(value)
            else:
                kind, body = encode_value(value)
        except BaseException as error:
            running = False
            ended_with(error, ticket, started)
        else:
            record(kind, ticket, started, ended, body)
        value = arguments = None
    if back:
        os.chdir(back)


def encode_integer(value):
    try:
        return b"V", b"%d" % value
    except ValueError:  # more digits than this Python writes
        return encode_value(value)


def prepare_in_surroundings(definition):
    with Surroundings(definition):
        definition.prepare()
    return run_in_surroundings(definition)


# ---- requests of ipyparallel clients (ipython.py comes in a frame of its own before the first)

ipython = {"__name__": "pcluster_ipython"}


def run_request(ticket, body):
    global running
    (count,) = struct.unpack_from("<I", body)
    sizes = struct.unpack_from("<%dQ" % count, body, 4)
    offset, parts, view = 4 + 8 * count, [], memoryview(body)
    for size in sizes:
        parts.append(view[offset : offset + size])
        offset += size
    if not may_begin():
        return
    started = clock()
    meta = json.loads(bytes(parts[0]))
    if meta["method"] == "execute":  # of an application the engine says so when it takes long
        record(b"B", ticket, started, started, b"")
    try:
        running = True
        if "buffers" in meta:
            parts += mapped(meta["buffers"])
        content, buffers = ipython["handle"](meta, parts[1:], ticket)
        running = False
    except BaseException as error:
        running = False
        content, buffers = (
            {"status": "error", "ename": type(error).__name__, "evalue": text_of(error), "traceback": [formatted(error)]},
            [],
        )
    if not is_worker:
        os._exit(0)
    status = encoded({"status": content["status"], "ename": content.get("ename", "")})
    record_parts(b"A", ticket, started, clock(), [status, encoded(content)] + buffers)


def mapped(path):
    """The buffers in a file of the controller's (src/db/buffers.rs). They are its pages, not a copy; what is written to them stays here."""
    with open(path, "rb") as file:
        view = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    (number,) = struct.unpack_from("<Q", view)
    count, alignment = (number & ~ALIGNED, 64) if number & ALIGNED else (number, 1)
    offset, buffers = 8 + 8 * count, []
    for size in struct.unpack_from("<%dQ" % count, view, 8):
        offset += -offset % alignment
        buffers.append(view[offset : offset + size])
        offset += size
    return buffers


def publish(ticket, kind, topic, content, buffers=()):
    """An iopub message, behind what was printed before it."""
    now = clock()
    record_parts(b"I", ticket, now, now, [encoded({"type": kind, "topic": topic}), encoded(content)] + list(buffers))


def clear():
    if "reset" in ipython:
        ipython["reset"]()
        return
    kept = {name: namespace[name] for name in ("__name__", "__builtins__", "__doc__") if name in namespace}
    namespace.clear()
    namespace.update(kept)


# ---- the loop


def hello():
    there = all(importlib.util.find_spec(name) is not None for name in ("IPython", "ipyparallel", "ipykernel"))
    facts = {"version": sys.version.split()[0], "executable": sys.executable, "apply": there}
    record(b"H", 0, clock(), clock(), encoded(facts))


def nothing_waits(frames):
    """Whether the next frame is still to come."""
    os.set_blocking(FRAMES, False)
    try:
        return not frames.peek(1)
    finally:
        os.set_blocking(FRAMES, True)


def serve():
    frames = os.fdopen(FRAMES, "rb", buffering=1 << 16, closefd=False)
    has_background = run_background = None
    while True:
        if has_background is not None and has_background() and nothing_waits(frames):
            run_background(FRAMES)
        head = frames.read(FRAME.size)
        if len(head) < FRAME.size:
            return
        kind, ticket, length = FRAME.unpack(head)
        body = bytearray(length)
        if length and frames.readinto(body) < length:
            return
        if kind == b"T":
            number, inputs = json.loads(body)
            run_tasks(ticket, number, inputs)
        elif kind == b"R":
            run_request(ticket, body)
        elif kind == b"D":
            number, definition = json.loads(body)
            definitions[number] = Definition(definition["work"], definition.get("options") or {})
        elif kind == b"F":
            definitions.pop(json.loads(body), None)
        elif kind == b"M":
            exec(compile(bytes(body), SELF, "exec"), ipython)
            ipython["start"](globals())
            has_background, run_background = ipython["has_background"], ipython["run_background"]
        elif kind == b"S":
            ipython["tell"](json.loads(body))
            if greets_late:
                hello()
        elif kind == b"C":
            clear()


def begin():
    signal.signal(signal.SIGINT, interrupt)
    os.register_at_fork(after_in_child=forked)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    sys.modules["__main__"] = main
    sys.argv[:] = [""]
    try:
        if not greets_late:
            hello()
        serve()
    except BrokenPipeError:
        pass  # the engine is gone


begin()
