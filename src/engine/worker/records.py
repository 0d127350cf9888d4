# ---- records: what the worker reports to the engine. One namespace with state.py, values.py, code.py and worker.py.
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
