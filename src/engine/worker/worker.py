# ---- tasks: running them, one after the other.
def may_begin():
    """Waits for the token of the next task."""
    token = read(TOKENS, 1)
    if not token:
        leave()
    return token == b"g"


def leave():
    flush()
    finish_records()
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
    surely(record, b"E", ticket, started, ended, body)


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
    if shared is not None:
        report_unclaimed()
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
            if type(arguments) is Unusable:
                raise arguments
            run = definition.prepare() if plain else prepare_in_surroundings(definition)
            value = run(arguments)
            ended = clock()
            if not is_worker:
                os._exit(0)
            if value is None:
                kind, body = b"V", b"null"
            elif type(value) is int:
                kind, body = encode_integer(value)
            else:  # code of the user's too
                kind, body = encode_value(value)
            running = False
        except BaseException as error:
            running = False
            ended_with(error, ticket, started)
        else:
            surely(record if type(body) is bytes else record_parts, kind, ticket, started, ended, body)
        value = arguments = None
    if back:
        os.chdir(back)


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
    report_unclaimed()
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
    surely(record_parts, b"A", ticket, started, clock(), [status, encoded(content)] + buffers)


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


def publish(ticket, kind, topic, content, buffers=(), parent=None):
    """An iopub message, behind what was printed before it: of the request that runs, or of the header that is its `parent`."""
    global has_warned
    if getpid() != owner:
        if not has_warned:
            has_warned = True
            sys.stderr.write("what a forked child displays is not shown; display it in the process that forked it\n")
        return
    now = clock()
    meta = {"type": kind, "topic": topic}
    if parent is not None:
        meta["parent"] = parent
    record_parts(b"I", ticket, now, now, [encoded(meta), encoded(content)] + list(buffers))


def clear():
    if "reset" in ipython:
        ipython["reset"]()
        return
    kept = {name: namespace[name] for name in ("__name__", "__builtins__", "__doc__") if name in namespace}
    namespace.clear()
    namespace.update(kept)


# ---- the loop


facts = b""


def find_facts():
    """What the engine reports of this Python."""
    global facts
    there = all(importlib.util.find_spec(name) is not None for name in ("IPython", "ipyparallel", "ipykernel"))
    facts = encoded({"version": sys.version.split()[0], "executable": sys.executable, "apply": there})


def hello():
    record(b"H", 0, clock(), clock(), facts)


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
            number, inputs = decoded_inputs(body)
            run_tasks(ticket, number, inputs)
        elif kind == b"R":
            run_request(ticket, body)
        elif kind == b"D":
            number, definition, place = json.loads(body)
            definitions[number] = Definition(definition["work"], definition.get("options") or {}, place)
        elif kind == b"F":
            definitions.pop(json.loads(body), None)
        elif kind == b"M":
            share_records()
            exec(compile(bytes(body), SELF, "exec"), ipython)
            ipython["start"](globals())
            has_background, run_background = ipython["has_background"], ipython["run_background"]
        elif kind == b"S":
            ipython["tell"](json.loads(body))
            if greets_late:
                hello()
        elif kind == b"C":
            clear()


def be_worker(*files):
    global FRAMES, RECORDS, TOKENS, STDOUT, STDERR
    FRAMES, RECORDS, TOKENS, STDOUT, STDERR = files
    os.dup2(STDOUT, 1)
    os.dup2(STDERR, 2)
    for descriptor in files:
        os.set_inheritable(descriptor, False)
    own_records()
    signal.signal(signal.SIGINT, interrupt)
    os.register_at_fork(after_in_child=forked)
    sys.modules["__main__"] = main
    sys.argv[:] = [""]
    try:
        if not greets_late:
            hello()
        serve()
        finish_records()
    except BrokenPipeError:
        pass  # the engine is gone
