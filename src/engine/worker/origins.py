"""Which request code belongs to, wherever it runs and however long. One namespace with ipython.py.

What a request starts (threads, tasks of the event loop) may print and display when the request has ended and another one runs.
It is published as of the request that started it then. Only what is written past Python (by C code, by child processes) has
no origin: while a request runs it counts as of that, and between requests as of none.
"""
import _thread
import contextvars
import functools
import io
import sys
import threading

worker = {}


class Origin:
    def __init__(self, ticket, header):
        self.ticket, self.header = ticket, header


# Of a request's own code, and of what it leaves to the event loop.
origin_here = contextvars.ContextVar("pcluster_origin", default=None)
# The request that runs.
running_origin = None
# Held by a thread that writes for the request that runs, so that the request does not end meanwhile.
writing = threading.Lock()
# Where else to publish.
also_to = []
main_thread = _thread.get_ident()
# Of threads that Python did not start: the request that ran when they were first seen.
foreign = threading.local()


def origin():
    """Of the code that calls; None: of no request."""
    here = origin_here.get()
    if here is not None:
        return here
    identity = _thread.get_ident()
    if identity == main_thread:
        return running_origin
    thread = threading._active.get(identity)
    if hasattr(thread, "_pcluster_origin"):
        return thread._pcluster_origin
    if not hasattr(foreign, "origin"):
        foreign.origin = running_origin
    return foreign.origin


def begin(ticket, header):
    global running_origin
    running_origin = Origin(ticket, header)
    origin_here.set(running_origin)


def end():
    global running_origin
    with writing:
        running_origin = None
    origin_here.set(None)


def published(kind, topic, content, buffers=(), metadata=None):
    """Publishes in the name of the code that calls."""
    of = origin()
    header = of.header if of is not None else {}
    if of is not None and of is running_origin:
        worker["publish"](of.ticket, kind, topic, content, buffers, metadata)
    else:
        worker["publish"](0, kind, topic, content, buffers, metadata, parent=header)
    for show in also_to:
        show(kind, topic, content, header, buffers, metadata)


class Stream(io.TextIOWrapper):
    """stdout or stderr. What is written for the request that runs goes into the file that the engine reads."""

    def write(self, text):
        if not isinstance(text, str) or worker["getpid"]() != worker["owner"]:
            return super().write(text)
        if _thread.get_ident() == main_thread:  # where requests end
            if origin() is running_origin:
                return super().write(text)
        else:
            with writing:
                if origin() is running_origin:
                    return super().write(text)
        if text:
            name = self.pcluster_name
            published("stream", name, {"name": name, "text": text})
        return len(text)


def know_origins():
    for thread in threading.enumerate():
        thread._pcluster_origin = None
    start = threading.Thread.start

    @functools.wraps(start)
    def start_with_origin(thread):
        thread._pcluster_origin = origin()
        return start(thread)

    threading.Thread.start = start_with_origin
    for name in ("stdout", "stderr"):
        before = getattr(sys, name)
        if type(before) is io.TextIOWrapper:
            before.flush()
            stream = Stream(before.buffer, encoding=before.encoding, errors=before.errors, line_buffering=True)
            stream.pcluster_name = name
            setattr(sys, name, stream)
