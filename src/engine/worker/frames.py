# ---- frames: messages of the engine. Shares a namespace with the other modules.
#
# Leftovers of user code can raise an exception in the main thread at any time: a signal handler, or a thread that uses
# PyThreadState_SetAsyncExc. No byte of a frame is lost: `extend` of `islice` of `iter` of `read` is one call without Python code in
# it, and data is removed from `state` by one assignment.
def one_by_one(descriptor, size):
    """Iterator over reads of a descriptor, for `extend(islice(..., 1))`; yields empty bytes at the end."""
    return iter(functools.partial(read, descriptor, size), None)


class Frames:
    def __init__(self, descriptor):
        self.descriptor = descriptor
        self.reads = one_by_one(descriptor, 1 << 18)
        # Unprocessed pieces, the number of bytes taken from the first one, and the units of the last frame.
        self.state = collections.deque(), 0, None

    def next(self):
        """(kind, ticket, body, argument of `take`) of the next frame; None at the end."""
        while True:
            pieces, at, _ = self.state
            available = sum(map(len, pieces)) - at
            needed = FRAME.size
            if available >= needed and len(pieces[0]) - at >= needed:
                kind, ticket, length = FRAME.unpack_from(pieces[0], at)
                needed += length
                first = pieces[0]
                if len(first) - at >= needed:
                    start, end = at + FRAME.size, at + needed
                    # Writable, because clients' functions may modify buffers.
                    body = memoryview(first)[start:end] if type(first) is bytearray else bytearray(first[start:end])
                    return kind, ticket, body, (pieces, end)
            if available >= needed:
                self.state = collections.deque([bytearray().join(pieces)]), at, None
                continue
            pieces.extend(itertools.islice(self.reads, 1))
            if not pieces[-1]:
                return None

    def take(self, place, units=None):
        pieces, at = place
        if at == len(pieces[0]):
            pieces, at = collections.deque(itertools.islice(pieces, 1, None)), 0
        self.state = pieces, at, units

    def are_all_taken(self):
        """Returns whether no byte of another frame has arrived."""
        pieces, at, units = self.state
        if units is not None or sum(map(len, pieces)) > at:
            return False
        waiting = select.poll()
        waiting.register(self.descriptor, select.POLLIN)
        return not waiting.poll(0)


class Units:
    """The units of one frame and their progress."""

    def __init__(self, first, what, inputs):
        self.first, self.what, self.inputs = first, what, inputs
        # One byte per received token: `readinto` stores it in one call.
        self.tokens = bytearray(1 if inputs is None else len(inputs))
        self.token_view = memoryview(self.tokens)
        # Number of units started or skipped; start time of the last one while its end may be unreported.
        self.state = 0, None
