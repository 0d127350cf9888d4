# ---- records: the worker's reports to the engine. Shares a namespace with the other modules.
#
# A record is written to the engine's pipe completely or not at all, and never interleaved with another one. This is ensured as follows.
#
# Before `share_records` only the main thread reports (user code has no access to this module). A direct write has at most
# PIPE_BUF bytes, which a pipe accepts atomically (pipe(7)). A longer record is put into `unwritten` by one call and written from
# there; the writing call itself stores the number of written bytes (`extend` of `map`: no Python code runs between `write` and
# storing its result, so no signal handler and no asynchronous exception can intervene). After any exception the next record, or
# `write_rest`, continues with the following byte.
#
# After `share_records` any thread may report, also a signal handler during a report of its thread. A dedicated thread writes:
# it receives records through a SimpleQueue, whose `put` is reentrant. No signal handler runs in that thread, and its identifier is
# not published, so no exception is raised in it. The reporting thread waits until the record is written: the record's memory (of
# arrays) must not change before, and output must not be lost if Python exits next. An exception raised in the waiting thread is
# delivered after the record has been written.
#
# A forked child has a different process id, even if it was forked without Python (`forked` is not called then), and reports nothing.
#
# If an exception interrupts a report, the record has been reported if it was handed over before, and not otherwise. In both cases
# `surely` reports the end of a unit again: the engine ignores a duplicate.
unwritten = collections.deque()
# The queue of the writing thread, once it is started.
shared = None
# The reporting process. `is_owner[0]` checks it without a system call: the kernel clears this memory in a forked child.
owner = 0
is_owner = b"\0"
WIPE_ON_FORK = 18  # MADV_WIPEONFORK, madvise(2)
MAX_ATOMIC_BODY = PIPE_BUF - RECORD.size - PEAK.size  # maximum length of a body for an atomic write
has_warned = False


def own_records():
    """Makes this process the only one that reports."""
    global owner, is_owner
    owner = getpid()
    try:
        is_owner = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        is_owner.madvise(WIPE_ON_FORK)
        is_owner[0] = 1
    except (OSError, ValueError):  # a kernel before 4.14
        is_owner = OwnerByPid()


class OwnerByPid:
    def __getitem__(self, _):
        return getpid() == owner


def share_records():
    """Lets all threads report from now on."""
    global shared
    if shared is None:
        write_rest()
        queue = SimpleQueue()
        _thread.start_new_thread(keep_writing, (queue.get,))
        shared = queue


def keep_writing(get):
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    is_open = True
    while True:
        parts, finished, lock = get()
        for part in parts:
            while is_open and len(part):
                try:
                    part = part[write(RECORDS, part) :]
                except OSError:  # the engine is gone, which the main thread sees
                    is_open = False
        parts = part = None
        finished.append(True)
        lock.release()


def write_rest():
    """Writes the rest of records that an exception interrupted."""
    while unwritten:
        part, counts = unwritten[0]
        done = sum(counts)
        if done < len(part):
            counts.extend(map(write, (RECORDS,), (part[done:],)))
        else:
            unwritten.popleft()


def hand_over(parts):
    """Writes one record: bytes, or memoryviews of bytes."""
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


def hand_over_joined(head, body):
    if len(body) > SMALL:
        hand_over((head, body))  # not copied once more
        return
    data = head + body
    if shared is not None or unwritten or len(data) > PIPE_BUF:
        hand_over((data,))
    elif is_owner[0]:
        write(RECORDS, data)


def finish_records():
    """Waits until all reported records are written."""
    hand_over(())


def surely(report, *arguments):
    """Reports the end of a unit; drops exceptions raised meanwhile: they were meant for the unit and are too late."""
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


# The peak memory to report with the next record, if it was measured since the last one.
peak = b""
measured_at = 0.0
# Reset the peak before the next task: what this one had is released by then.
must_reset = True
# The peak of the largest ended child process, in KiB.
peak_of_children = 0
# /proc/self/clear_refs
CLEAR_REFS = -1


def measure_memory(now):
    """Measures the peak of the resident memory since the last reset (getrusage(2))."""
    global peak, measured_at, peak_of_children, must_reset
    measured_at, must_reset = now, True
    kilobytes, of_children = getrusage(RUSAGE_SELF).ru_maxrss, getrusage(RUSAGE_CHILDREN).ru_maxrss
    if of_children > peak_of_children:
        peak_of_children = of_children
        kilobytes = max(kilobytes, of_children)
    peak = PEAK.pack(kilobytes << 10)


def reset_peak():
    """Resets the peak to what is resident now (proc_pid_clear_refs(5)). Where the kernel cannot, it is that since the worker's start."""
    global must_reset
    must_reset = False
    if CLEAR_REFS >= 0:
        try:
            write(CLEAR_REFS, b"5")
        except OSError:
            pass


def record(kind, ticket, started, ended, body):
    """Writes one record, with the positions of stdout and stderr if they have changed."""
    global reported_out, reported_err, reported_at, peak
    flush()
    flags, measured, peak = 2 if peak else 0, peak, b""
    length = len(measured) + len(body)
    # In this order: the engine changes its sequence number before it reads from a pipe.
    if not in_pipes(0, 1) and counts[0] == reported_at:
        hand_over_joined(pack(kind, flags, ticket, length, started, ended) + measured, body)
        return
    at, out, err = positions()
    if out == reported_out and err == reported_err:
        hand_over_joined(pack(kind, flags, ticket, length, started, ended) + measured, body)
    else:
        head = pack(kind, flags | 1, ticket, length + 16, started, ended) + POSITIONS.pack(out, err) + measured
        hand_over_joined(head, body)
    reported_out, reported_err, reported_at = out, err, at


def record_parts(kind, ticket, started, ended, parts):
    """Writes a record whose body consists of parts: their number, their lengths, and their bytes."""
    global reported_out, reported_err, reported_at, peak
    flush()
    parts = [memoryview(part).cast("B") if not isinstance(part, bytes) else part for part in parts]
    sizes = [len(part) for part in parts]
    at, out, err = positions()
    flags, measured, peak = 3 if peak else 1, peak, b""
    head = POSITIONS.pack(out, err) + measured + struct.pack("<I%dQ" % len(sizes), len(sizes), *sizes)
    head = pack(kind, flags, ticket, len(head) + sum(sizes), started, ended) + head
    # A single write wakes the engine once.
    hand_over([b"".join([head] + parts)] if sum(sizes) <= SMALL else [head] + parts)
    reported_out, reported_err, reported_at = out, err, at


def report_unclaimed():
    """Reports output written while no unit was running, so that it is not assigned to the next unit."""
    flush()
    if positions()[1:] != (reported_out, reported_err):
        record(b"N", 0, clock(), clock(), b"")


def cut(text, length):
    if len(text) <= length:
        return text
    half = length // 2
    return "%s\n[... %d characters cut ...]\n%s" % (text[:half], len(text) - 2 * half, text[-half:])
