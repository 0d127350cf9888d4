# ---- tasks: runs them sequentially.
leaving = False


def ended_with(error, ticket, started):
    """Reports a task that ended with an exception."""
    ended = clock()
    if not is_owner[0]:
        os._exit(1)
    if ended - measured_at >= MEASURE_EVERY:
        measure_memory(ended)
    if isinstance(error, Unusable):
        body = error.body
    else:
        evalue = text_of(error)
        if isinstance(error, KeyboardInterrupt) and not evalue:
            evalue = "interrupted"
        body = error_body(type(error).__name__, evalue, formatted(error))
    surely(record, b"E", ticket, started, ended, body)


def run_tasks(units):
    """Runs a batch of one map's tasks, or the rest of it.

    The per-task cost of this loop was measured (docs/adr/0009-map-workers.md). After the report, the state may still say that the
    end of the task is unreported: the engine ignores a duplicate."""
    global running, leaving, peak
    definition, inputs, first, tokens = definitions[units.what], units.inputs, units.first, units.tokens
    is_map, environment, function, place = definition.is_map, definition.env, definition.function, definition.place
    next_token, token_view = token_file.readinto, units.token_view
    out, err = streams
    done, _ = units.state
    if shared is not None:
        report_unclaimed()
    count = len(inputs)
    while done < count:
        if not tokens[done]:
            next_token(token_view[done : done + 1])
        if tokens[done] != BEGIN:
            if not tokens[done]:
                leaving = True
                return
            done += 1
            units.state = done, None
            continue
        if must_reset:
            reset_peak()
        ticket = first + done & 0xFFFFFFFF
        started = clock()
        kind, is_reported = b"V", False
        try:
            units.state = done + 1, started
            running = True
            arguments = inputs[done]
            form = type(arguments)
            if form is Unusable:
                raise arguments
            if place is not None:
                fchdir(place)
                if environment:
                    os.environ.update(environment)
                if form is list:
                    value = function(*arguments)
                elif form is dict:
                    value = function(**arguments)
                else:
                    value = function(arguments)
            elif is_map:
                definition.enter()
                function, place = definition.function, definition.place
                out, err = streams
                # The engine estimates task durations from this time; exclude loading the module.
                started = clock()
                units.state = done + 1, started
                value = definition.run(arguments)
            else:
                value = run_in_surroundings(definition, arguments)
            ended = clock()
            if not is_owner[0]:
                os._exit(0)
            if value is None:
                body = b"null"
            elif type(value) is int and SHORT > value > -SHORT:
                body = b"%d" % value
            else:  # may call user code
                kind, body = encode_value(value)
            running = False
            if ended - measured_at >= MEASURE_EVERY:
                measure_memory(ended)
        except BaseException as error:
            running = False
            ended_with(error, ticket, started)
        else:
            try:
                # The quick path: no output, and descriptors 1 and 2 unchanged.
                if (
                    sys.stdout is out
                    and sys.stderr is err
                    and type(body) is bytes
                    and len(body) <= MAX_ATOMIC_BODY
                    and shared is None
                    and not unwritten
                ):
                    out.flush()
                    err.flush()
                    # In this order: the engine changes its sequence number before it reads from a pipe.
                    is_silent = not in_pipes(0, 1) and counts[0] == reported_at
                    if is_silent and fcntl(1, F_GETFL) == flags[0] and fcntl(2, F_GETFL) == flags[1]:
                        if peak:
                            body, peak = peak + body, b""
                            write(RECORDS, pack(kind, 2, ticket, len(body), started, ended) + body)
                        else:
                            write(RECORDS, pack(kind, 0, ticket, len(body), started, ended) + body)
                        is_reported = True
            except BaseException:
                pass  # raised again below, or too late for the task
            if not is_reported:
                surely(record if type(body) is bytes else record_parts, kind, ticket, started, ended, body)
        value = arguments = None
        done += 1
        if not is_reported:
            units.state = done, None
            if is_suspect or sys.stdout is not out or sys.stderr is not err or not are_untouched():
                check_streams(not is_map)
            out, err = streams
    units.state = done, None


# ---- requests of ipyparallel clients (ipython.py is sent in a frame of its own before the first one)

ipython = {"__name__": "pcluster_ipython"}


def run_request(units):
    global running, leaving
    parts = units.what
    if not units.tokens[0]:
        token_file.readinto(units.token_view)
    if units.tokens[0] != BEGIN:
        leaving = not units.tokens[0]
        return
    report_unclaimed()
    ticket, started = units.first, clock()
    try:
        units.state = 1, started
        meta = json.loads(bytes(parts[0]))
        if meta["method"] == "execute":  # for an apply the engine reports a long run itself
            record(b"B", ticket, started, started, b"")
        running = True
        if "buffers" in meta:
            parts += mapped(meta["buffers"])
        content, buffers = ipython["handle"](meta, parts[1:], ticket)
        running = False
    except BaseException as error:
        running = False
        content, buffers = failed_request(error), []
    if not is_worker:
        os._exit(0)
    reply(ticket, started, content, buffers)
    units.state = 1, None
    check_streams(True)


def failed_request(error):
    return {"status": "error", "ename": type(error).__name__, "evalue": text_of(error), "traceback": [formatted(error)]}


def reply(ticket, started, content, buffers):
    status = encoded({"status": content["status"], "ename": content.get("ename", "")})
    surely(record_parts, b"A", ticket, started, clock(), [status, encoded(content)] + buffers)


def parts_of(body):
    (count,) = struct.unpack_from("<I", body)
    sizes = struct.unpack_from("<%dQ" % count, body, 4)
    offset, parts, view = 4 + 8 * count, [], memoryview(body)
    for size in sizes:
        parts.append(view[offset : offset + size])
        offset += size
    return parts


def mapped(path):
    """The buffers in a file of the controller (src/db/buffers.rs), mapped copy-on-write."""
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


def publish(ticket, kind, topic, content, buffers=(), metadata=None, parent=None):
    """Publishes an iopub message, after earlier output, for the running request or for the request with the header `parent`."""
    global has_warned
    if getpid() != owner:
        if not has_warned:
            has_warned = True
            sys.stderr.write("display output of a forked child process is not shown; display it in the parent process\n")
        return
    now = clock()
    meta = {"type": kind, "topic": topic}
    if metadata:
        meta["metadata"] = metadata
    if parent is not None:
        meta["parent"] = parent
    record_parts(b"I", ticket, now, now, [encoded(meta), encoded(content)] + list(buffers))


def log(text):
    """Adds a line to the engine's log."""
    body, now = text.encode("utf-8", "backslashreplace"), clock()
    hand_over_joined(pack(b"L", 0, 0, len(body), now, now), body)


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
    """Collects what the engine reports about this Python."""
    global facts
    can_apply = all(importlib.util.find_spec(name) is not None for name in ("IPython", "ipyparallel", "ipykernel"))
    facts = encoded({"version": sys.version.split()[0], "executable": sys.executable, "apply": can_apply})


def hello():
    record(b"H", 0, clock(), clock(), facts)


def from_json(body):
    return json.loads(body if type(body) is bytearray else bytes(body))


def step(frames):
    """Executes the next frame, or resumes after an exception."""
    global leaving, has_background
    units = frames.state[2]
    if units is not None:
        if units.inputs is None:
            run_request(units)
        else:
            run_tasks(units)
        pieces, at, _ = frames.state
        frames.state = pieces, at, None
        return
    if has_background is not None and has_background() and frames.are_all_taken():
        ipython["run_background"](FRAMES)
    frame = frames.next()
    if frame is None:
        leaving = True
        return
    kind, ticket, body, place = frame
    if kind == b"T":
        number, inputs = decoded_inputs(body if type(body) is bytearray else bytes(body))
        frames.take(place, Units(ticket, number, inputs))
        return
    if kind == b"R":
        frames.take(place, Units(ticket, parts_of(body), None))
        return
    if kind == b"D":
        number, definition, code = from_json(body)
        definitions[number] = Definition(definition["work"], definition.get("options") or {}, code)
    elif kind == b"F":
        definitions.pop(from_json(body), None)
    elif kind == b"M":
        share_records()
        exec(compile(bytes(body), SELF, "exec"), ipython)
        ipython["start"](globals())
        has_background = ipython["has_background"]
    elif kind == b"S":
        ipython["configure"](from_json(body))
        if hello_after_shell:
            hello()
    elif kind == b"C":
        clear()
    frames.take(place)


def end_unfinished(units, late):
    """Ends a started unit that was interrupted by an exception outside of it."""
    done, started = units.state
    ticket = units.first + done - 1 & 0xFFFFFFFF
    error = late or KeyboardInterrupt()
    if units.inputs is None:
        reply(ticket, started, failed_request(error), [])
    else:
        ended_with(error, ticket, started)
    units.state = done, None


has_background = None


def serve(frames):
    """Survives exceptions from leftovers of user code (signal handlers, asynchronous exceptions)."""
    global running
    late = None
    while not leaving:
        try:
            running = False
            units = frames.state[2]
            if units is not None and units.state[1] is not None:
                end_unfinished(units, late)
            step(frames)
        except BrokenPipeError:
            raise
        except BaseException as error:
            late = error
        if not is_worker:
            os._exit(1)


def be_worker(*files):
    global FRAMES, RECORDS, TOKENS, STDOUT, STDERR, CLEAR_REFS, token_file, home
    for descriptor in files:
        os.set_inheritable(descriptor, False)
    FRAMES, RECORDS, TOKENS, STDOUT, STDERR, shown, watch = files
    open_streams(shown, watch)
    own_records()
    signal.signal(signal.SIGINT, interrupt)
    os.register_at_fork(after_in_child=forked)
    sys.modules["__main__"] = main
    sys.argv[:] = [""]
    token_file = io.FileIO(TOKENS, "r", closefd=False)
    try:
        CLEAR_REFS = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        pass
    home = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    frames = Frames(FRAMES)
    try:
        if not hello_after_shell:
            hello()
        while not leaving:
            try:
                serve(frames)
            except BrokenPipeError:
                raise
            except BaseException:
                pass
        finish_records()
    except BrokenPipeError:
        return  # the engine is gone
    leave()


def leave():
    """Exits like Python, but without tearing down the objects of the interpreter from before the fork, which would take longest."""
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    atexit._run_exitfuncs()
    flush()
    objects = gc.get_objects()
    kinds = set(map(type, objects))
    files = tuple(kind for kind in kinds if issubclass(kind, IOBase))
    if any(hasattr(kind, "__del__") and kind not in files for kind in kinds):
        # A regular exit, with frozen objects collected, so that finalizers run.
        definitions.clear()
        gc.unfreeze()
        return
    for it in objects:
        if isinstance(it, files):
            try:
                it.flush()
            except Exception:
                pass
    os._exit(0)
