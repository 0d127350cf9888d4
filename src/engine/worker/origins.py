"""Tracks which request code belongs to, in any thread and after the end of the request. Shares a namespace with ipython.py.

Threads and event loop tasks started by a request may print and display after it has ended and another one is running. Their
output is published for the request that started them. Only output that bypasses Python (from C code or child processes) has no
origin: it is assigned to the running request, or to none between requests.
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


# The origin of a request's code and of the event loop tasks that it creates.
current_origin = contextvars.ContextVar("pcluster_origin", default=None)
# The running request.
running_origin = None
# Held by a thread that writes for the running request, so that the request does not end meanwhile.
writing = threading.Lock()
# Additional receivers of published messages.
listeners = []
main_thread = _thread.get_ident()
# For threads not started by Python: the request that was running when they were first seen.
foreign = threading.local()


def origin():
    """The origin of the calling code; None if it belongs to no request."""
    here = current_origin.get()
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
    current_origin.set(running_origin)


def end():
    global running_origin
    with writing:
        running_origin = None
    current_origin.set(None)


def published(kind, topic, content, buffers=(), metadata=None):
    """Publishes a message for the request of the calling code."""
    of = origin()
    header = of.header if of is not None else {}
    if of is not None and of is running_origin:
        worker["publish"](of.ticket, kind, topic, content, buffers, metadata)
    else:
        worker["publish"](0, kind, topic, content, buffers, metadata, parent=header)
    for show in listeners:
        show(kind, topic, content, header, buffers, metadata)


class Stream(io.TextIOWrapper):
    """stdout or stderr. Output of the running request is written to the pipe that the engine reads."""

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


def track_origins():
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
