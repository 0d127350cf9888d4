# ---- streams: stdout and stderr, which a task may close, wrap or redirect. Shares a namespace with the other modules.
#
# Both are pipes that the engine reads. STDOUT and STDERR are private descriptors; 1 and 2 are separate open file descriptions,
# which children inherit: flags set by a child (O_NONBLOCK) affect only 1 and 2.

# sys.stdout and sys.stderr of tasks.
streams = [sys.stdout, sys.stderr]
# Flags without effect on a pipe, which distinguish 1 and 2 from replacements made by a task.
MARKS = (os.O_APPEND | os.O_NOATIME, os.O_NOATIME)
# Current flags of 1 and 2.
flags = [-1, -1]
# True if a stream could not be flushed.
is_suspect = False
# The engine's counts: its sequence number and the number of bytes read from each pipe (counts.rs).
counts = (0, 0, 0)
# Polls for data in the pipes.
in_pipes = None


def open_streams(shown, watch):
    """`shown`: the memory with the engine's counts. `watch`: an epoll descriptor for both pipes."""
    global counts, in_pipes
    memory = mmap.mmap(shown, 24, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    os.close(shown)
    counts = memoryview(memory).cast("Q")
    in_pipes = select.epoll.fromfd(watch).poll
    for number in (0, 1):
        renew(number)
        streams[number] = new_stream(number)
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__ = streams


def bytes_in(pipe):
    count = bytearray(4)
    ioctl(pipe, FIONREAD, count, True)
    return int.from_bytes(count, sys.byteorder)


def positions():
    """The engine's sequence number, and the number of bytes written to stdout and stderr: bytes read plus bytes in the pipes."""
    tries = 0
    while True:
        at = counts[0]
        if not at & 1:  # the engine is not reading
            out, err = counts[1] + bytes_in(STDOUT), counts[2] + bytes_in(STDERR)
            if counts[0] == at:
                return at, out, err
        tries += 1
        if tries > 20 and is_engine_gone(1):
            raise BrokenPipeError


def is_engine_gone(milliseconds):
    ends = select.poll()
    ends.register(RECORDS, 0)
    return ends.poll(milliseconds)


def renew(number):
    """Makes descriptor 1 or 2 refer to its pipe again."""
    descriptor, twin = number + 1, (STDOUT, STDERR)[number]
    try:
        own = os.open("/proc/self/fd/%d" % twin, os.O_WRONLY | MARKS[number])
    except OSError:
        own = os.dup(twin)
        os.set_blocking(own, True)
    if own == descriptor:  # it was closed
        os.set_inheritable(own, True)
    else:
        os.dup2(own, descriptor)
        os.close(own)
    flags[number] = fcntl(descriptor, F_GETFL)


def new_stream(number):
    raw = io.FileIO(number + 1, "w", closefd=False)
    raw.name = ("<stdout>", "<stderr>")[number]
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)


def adopt_streams():
    """Keeps replacements that a map's module has made, for this map."""
    streams[:] = sys.stdout, sys.stderr


def flush_waiting(stream):
    """Flushes a non-blocking stream in blocking mode."""
    try:
        os.set_blocking(stream.fileno(), True)
        stream.flush()
    except Exception:
        pass


def is_broken(stream):
    try:
        stream.flush()
        return getattr(stream, "closed", False)
    except Exception:
        return True


def are_untouched():
    try:
        return fcntl(1, F_GETFL) == flags[0] and fcntl(2, F_GETFL) == flags[1]
    except OSError:
        return False


def check_streams(keep):
    """Restores stdout and stderr after a unit. `keep`: working replacements are kept."""
    global is_suspect
    is_suspect = False
    for number, name in enumerate(("stdout", "stderr")):
        try:
            is_same = fcntl(number + 1, F_GETFL) == flags[number]
        except OSError:
            is_same = False
        if not is_same:
            renew(number)
        if keep and not is_broken(getattr(sys, name, None)):
            continue
        # Replace the stream first, so that no other reference closes the file during the check.
        setattr(sys, name, streams[number])
        if is_broken(streams[number]):
            streams[number] = stream = new_stream(number)
            setattr(sys, name, stream)
            setattr(sys, "__%s__" % name, stream)
