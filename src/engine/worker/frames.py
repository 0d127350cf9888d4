# ---- frames: what the engine sends. One namespace with the other parts.
#
# User code may leave something behind that raises an exception in the main thread at any later moment: a signal handler, or a
# thread that uses PyThreadState_SetAsyncExc. No byte of a frame is lost then: `extend` of `islice` of `iter` of `read` is one call
# without Python code in it, and what was read leaves `state` by one assignment.
def one_by_one(descriptor, size):
    """Reads of a descriptor, for `extend(islice(..., 1))`; an empty one at the end."""
    return iter(functools.partial(read, descriptor, size), None)


class Frames:
    def __init__(self, descriptor):
        self.descriptor = descriptor
        self.reads = one_by_one(descriptor, 1 << 18)
        # Pieces that were read, how much of the first one was taken, and the units of the frame that was taken last.
        self.state = collections.deque(), 0, None

    def next(self):
        """(kind, ticket, body, what `take` wants) of the next frame; None at the end."""
        while True:
            pieces, at, _ = self.state
            there = sum(map(len, pieces)) - at
            needed = FRAME.size
            if there >= needed and len(pieces[0]) - at >= needed:
                kind, ticket, length = FRAME.unpack_from(pieces[0], at)
                needed += length
                first = pieces[0]
                if len(first) - at >= needed:
                    start, end = at + FRAME.size, at + needed
                    # Buffers of clients are written to.
                    body = memoryview(first)[start:end] if type(first) is bytearray else bytearray(first[start:end])
                    return kind, ticket, body, (pieces, end)
            if there >= needed:
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
        """Nothing of a next frame has come."""
        pieces, at, units = self.state
        if units is not None or sum(map(len, pieces)) > at:
            return False
        waiting = select.poll()
        waiting.register(self.descriptor, select.POLLIN)
        return not waiting.poll(0)


class Units:
    """The units of one frame, as far as they have been run."""

    def __init__(self, first, what, inputs):
        self.first, self.what, self.inputs = first, what, inputs
        # A byte for each token that has come: `readinto` puts it there in one call.
        self.tokens = bytearray(1 if inputs is None else len(inputs))
        self.room = memoryview(self.tokens)
        # How many have begun or were skipped; the last one's start while its end may not be reported.
        self.state = 0, None
