"""The engine's Python worker: runs tasks sequentially and reports their ends.

Forked from an interpreter that has run no user code (interpreter.py), with private files:
frames (in), records (out), tokens (in: one byte per task, "g" starts it, "s" skips it), the pipes of stdout and stderr, the
engine's counts of bytes read from them, and an epoll descriptor that tells whether they have data.
Standard library only, Python 3.8 syntax. The frames are described in protocol.rs.
"""
import _thread
import atexit
import base64
import builtins
import collections
import functools
import gc
import importlib
import importlib.machinery
import importlib.util
import io
import itertools
import json
import linecache
import math
import mmap
import os
import pickle
import re
import select
import signal
import struct
import sys
import time
import traceback
import types
from _io import _IOBase as IOBase
from fcntl import F_GETFL, fcntl, ioctl
from queue import SimpleQueue
from resource import RUSAGE_CHILDREN, RUSAGE_SELF, getrusage
from select import PIPE_BUF
from termios import FIONREAD

# Descriptors of this worker, set by be_worker.
FRAMES = RECORDS = TOKENS = STDOUT = STDERR = -1
token_file = home = None
# Report readiness only after IPython's shell has run its startup files.
hello_after_shell = False

SELF = "<pcluster worker>"
PYTHON = "Python %s (%s)" % (sys.version.split()[0], sys.executable)
FRAME = struct.Struct("<cxxxIQ")  # kind, first ticket, length of the body
RECORD = struct.Struct("<cBxxIQdd")  # kind, flags, ticket, length of the body, started, ended
POSITIONS = struct.Struct("<QQ")  # ends of stdout and stderr; before the body with flag 1
PEAK = struct.Struct("<Q")  # peak memory in bytes; before the body, and after the positions, with flag 2
MEASURE_EVERY = 0.001  # seconds: memory is measured at the end of a task, but not more often
REPR_LENGTH = 1000
TEXT_LENGTH = 200_000
SMALL = 1 << 16  # up to this many bytes are joined into one write
ALIGNED = 1 << 63  # flag in the buffer count of a file
BEGIN = ord("g")  # the token that starts a task
SHORT = 1 << 63  # integers below are encoded without further checks
RETRY_AFTER = 2.0  # seconds until a failed definition is retried

encode = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode
encode_ascii = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode
decode, dump, chain = json.loads, pickle.dumps, itertools.chain.from_iterable
read, write, clock, pack, getpid, fchdir = os.read, os.write, time.time, RECORD.pack, os.getpid, os.fchdir

# True while user code is running: only then does SIGINT raise KeyboardInterrupt.
running = False
# The last reported positions of stdout and stderr, and the engine's sequence number at that time.
reported_out = reported_err = reported_at = 0
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
