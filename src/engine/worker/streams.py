# ---- streams: stdout and stderr, which a task may close, wrap or redirect. One namespace with the other parts.
# What tasks find as sys.stdout and sys.stderr.
streams = [sys.stdout, sys.stderr]


def adopt_streams():
    """What a map's code has made of them stays for the map."""
    streams[:] = sys.stdout, sys.stderr


def is_broken(stream):
    try:
        stream.flush()
        return getattr(stream, "closed", False)
    except Exception:
        return True


def check_streams(keep):
    """After a unit: what it has done to stdout and stderr does not meet the next one. `keep`: replacements that work stay."""
    for number, name, twin in ((0, "stdout", STDOUT), (1, "stderr", STDERR)):
        descriptor = number + 1
        try:
            is_same = os.path.sameopenfile(descriptor, twin)
        except OSError:
            is_same = False
        if not is_same:
            os.dup2(twin, descriptor)
        if keep and not is_broken(getattr(sys, name, None)):
            continue
        # Whatever else refers to the file must not close it while it is looked at.
        setattr(sys, name, streams[number])
        if is_broken(streams[number]):
            raw = io.FileIO(descriptor, "w", closefd=False)
            stream = io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)
            streams[number] = stream
            setattr(sys, name, stream)
            setattr(sys, "__%s__" % name, stream)
