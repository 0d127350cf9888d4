# ---- records: what the worker reports to the engine. One namespace with state.py, values.py, code.py and worker.py.
#
# A record is in the engine's pipe whole or not at all, next to no byte of another. What could break that, and why it does not:
#
# Before `share_records` only the main thread reports (nothing that users are given leads here). What it writes at once is at most
# PIPE_BUF bytes, which a pipe takes together or not yet (pipe(7)). What is longer is put into `unwritten` by one call, and from
# there written; how much of it was written is kept by the call that writes (`extend` of `map`: between `write` and its result's
# place there is no Python code, so no signal handler and no asynchronous exception). Whatever is raised in between, the next
# record, or `write_rest`, goes on with the byte that follows.
#
# After `share_records` any thread reports, and a signal handler may do so while its thread does. A thread of its own writes:
# records come to it through a SimpleQueue, whose `put` is one call that may be interrupted by itself. No signal handler runs
# in that thread, and nobody is given its number, so nothing is raised in it. Who reports waits until the record is
# written: what it holds (the memory of arrays) must not change before, and what was shown must not be lost if Python ends next.
# An exception that is meant for the one who waits is raised when the record has been written.
#
# A forked child has another process id, also one that was forked past Python (`forked` is not called then), and reports nothing.
#
# A record that was cut short by an exception before it was handed over has not been reported; one that was, has been, though the
# exception is raised. `surely` reports the end of a unit again then: the engine passes over a second one.
unwritten = collections.deque()
# The queue of the writing thread, once there is one.
shared = None
# The process that reports. `is_owner[0]` is the same without a system call: memory that the kernel empties in a forked child.
owner = 0
is_owner = b"\0"
WIPE_ON_FORK = 18  # MADV_WIPEONFORK, madvise(2)
AT_ONCE = PIPE_BUF - RECORD.size  # bytes of a body
has_warned = False


def own_records():
    """This process is the worker: it alone reports."""
    global owner, is_owner
    owner = getpid()
    try:
        is_owner = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        is_owner.madvise(WIPE_ON_FORK)
        is_owner[0] = 1
    except (OSError, ValueError):  # a kernel before 4.14
        is_owner = AskedOwner()


class AskedOwner:
    def __getitem__(self, _):
        return getpid() == owner


def share_records():
    """From now on every thread may report."""
    global shared
    if shared is None:
        write_rest()
        queue = SimpleQueue()
        _thread.start_new_thread(keep_writing, (queue.get,))
        shared = queue


def keep_writing(get):
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    is_there = True
    while True:
        parts, finished, lock = get()
        for part in parts:
            while is_there and len(part):
                try:
                    part = part[write(RECORDS, part) :]
                except OSError:  # the engine is gone, which the main thread sees
                    is_there = False
        parts = part = None
        finished.append(True)
        lock.release()


def write_rest():
    """Writes what an exception has left unwritten."""
    while unwritten:
        part, counts = unwritten[0]
        done = sum(counts)
        if done < len(part):
            counts.extend(map(write, (RECORDS,), (part[done:],)))
        else:
            unwritten.popleft()


def hand_over(parts):
    """One record: bytes, or memoryviews of bytes."""
    if not is_owner[0]:
        return
    if shared is None:
        unwritten.extend([(memoryview(part), []) for part in parts])
        write_rest()
        return
    finished, lock, raised = [], _thread.allocate_lock(), None
    lock.acquire()
    shared.put(([memoryview(part) for part in parts], finished, lock))
    while not finished:
        try:
            lock.acquire()
        except BaseException as error:
            raised = raised or error
    if raised is not None:
        raise raised


def hand_over_small(data):
    if shared is not None or unwritten or len(data) > PIPE_BUF:
        hand_over((data,))
    elif is_owner[0]:
        write(RECORDS, data)


def finish_records():
    """Waits until all is written that was reported."""
    hand_over(())


def surely(report, *arguments):
    """Reports the end of a unit; what is raised meanwhile was meant for the unit, and comes too late."""
    for _ in range(20):
        try:
            return report(*arguments)
        except BrokenPipeError:
            raise
        except BaseException:
            pass
    return report(*arguments)


def flush():
    global is_suspect
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception as error:
            if isinstance(stream, io.TextIOWrapper) and error.__traceback__.tb_next is not None:
                raise  # from a signal handler, not from the stream
            is_suspect = True
            if isinstance(error, BlockingIOError):
                flush_waiting(stream)


def record(kind, ticket, started, ended, body):
    """One record, with the positions of stdout and stderr where something was written."""
    global reported_out, reported_err, reported_at
    flush()
    # In this order: what the engine takes out of a pipe changes its number before.
    if not in_pipes(0, 1) and counts[0] == reported_at:
        hand_over_small(pack(kind, 0, ticket, len(body), started, ended) + body)
        return
    at, out, err = positions()
    if out == reported_out and err == reported_err:
        hand_over_small(pack(kind, 0, ticket, len(body), started, ended) + body)
    else:
        hand_over_small(pack(kind, 1, ticket, len(body) + 16, started, ended) + POSITIONS.pack(out, err) + body)
    reported_out, reported_err, reported_at = out, err, at


def record_parts(kind, ticket, started, ended, parts):
    """A record whose body is several parts: their number, their lengths, then they."""
    global reported_out, reported_err, reported_at
    flush()
    parts = [memoryview(part).cast("B") if not isinstance(part, bytes) else part for part in parts]
    sizes = [len(part) for part in parts]
    at, out, err = positions()
    head = POSITIONS.pack(out, err) + struct.pack("<I%dQ" % len(sizes), len(sizes), *sizes)
    head = pack(kind, 1, ticket, len(head) + sum(sizes), started, ended) + head
    # One write wakes the engine once.
    hand_over([b"".join([head] + parts)] if sum(sizes) <= SMALL else [head] + parts)
    reported_out, reported_err, reported_at = out, err, at


def report_unclaimed():
    """What was written while nothing ran is not of what runs next."""
    flush()
    if positions()[1:] != (reported_out, reported_err):
        record(b"N", 0, clock(), clock(), b"")


def cut(text, length):
    if len(text) <= length:
        return text
    half = length // 2
    return "%s\n[... %d characters cut ...]\n%s" % (text[:half], len(text) - 2 * half, text[-half:])
