# ---- values: encoding of values, errors and texts. Shares a namespace with the other modules.
def encoded(value):
    """JSON text of plain data, with any strings."""
    text = encode(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return encode_ascii(value).encode()


def exact_text(text):
    """Converts a text to a plain str that UTF-8 can encode: no subclass, lone surrogates escaped."""
    if type(text) is str and text.isascii():
        return text
    return "".join((text, "")).encode("utf-8", "backslashreplace").decode()


def error_body(ename, evalue, lines=""):
    texts = [exact_text(cut(text, TEXT_LENGTH)) for text in (ename, evalue, lines)]
    return encoded(dict(zip(("ename", "evalue", "traceback"), texts)))


def text_of(error):
    """str() of an exception, which may itself raise any exception."""
    try:
        return str(error)
    except BaseException as failure:
        return "<str() of the %s failed: %s>" % (type(error).__name__, type(failure).__name__)


def own_frames_hidden(trace):
    while trace is not None and trace.tb_frame.f_code.co_filename == SELF:
        trace = trace.tb_next
    return trace


def formatted(error):
    try:
        lines = traceback.format_exception(type(error), error, own_frames_hidden(error.__traceback__))
        return "".join(lines) + getattr(error, "pcluster_note", "")
    except BaseException:
        return "%s: %s\n" % (type(error).__name__, text_of(error))


# Types that JSON preserves exactly, excluding subclasses.
SCALARS = frozenset((int, str, float, bool, type(None)))
PLAIN = SCALARS | {list, dict}
STRINGS = frozenset((str,))
MAX_DEPTH = 500  # levels of lists and dicts in JSON
DIGITS = 4300  # maximum of an integer that every Python can read
MAX_BITS = 14_000  # bits of an integer in JSON
MANY = 1 << 16  # number of elements from which on shared lists and dicts are detected


def is_plain(value):
    """Returns whether JSON preserves a list or dict exactly. Checks level by level, with loops in C."""
    if type(value) is list:
        inner = value
    elif STRINGS.issuperset(map(type, value)):
        inner = value.values()
    else:
        return False
    seen = 0
    for _ in range(MAX_DEPTH):
        kinds = set(map(type, inner))
        if SCALARS.issuperset(kinds):
            return True
        if not PLAIN.issuperset(kinds):
            return False
        lists = [one for one in inner if type(one) is list] if list in kinds else ()
        dicts = [one for one in inner if type(one) is dict] if dict in kinds else ()
        seen += len(inner)
        if seen > MANY and len(set(map(id, lists)) | set(map(id, dicts))) < len(lists) + len(dicts):
            return False  # JSON would repeat it at each occurrence
        inner = list(chain(lists))
        if dicts:
            if not STRINGS.issuperset(map(type, chain(dicts))):
                return False
            inner += chain(map(dict.values, dicts))
    return False


def has_long_integer(body):
    """Returns whether JSON text may contain an integer that other Pythons cannot read (this one has a different limit)."""
    limit = getattr(sys, "get_int_max_str_digits", int)()  # missing before 3.8.14, which has no limit
    return limit != DIGITS and re.search(b"[0-9]{%d}" % (DIGITS + 1), body) is not None


def encode_value(value):
    """(kind, body) of a value: its JSON if that is exact, otherwise parts: its type, a rendering, its pickle."""
    kind = type(value)
    try:
        if kind is float:
            if value - value == 0.0:
                return b"V", repr(value).encode()
        elif kind is int:
            if value.bit_length() < MAX_BITS:
                return b"V", b"%d" % value
        elif kind is str or kind is bool or ((kind is dict or kind is list) and is_plain(value)):
            body = encode(value).encode()
            if len(body) <= DIGITS or not has_long_integer(body):
                return b"V", body
    except (ValueError, RecursionError, OverflowError, MemoryError, RuntimeError):
        pass  # not finite, lone surrogate, too many digits, or changed by a thread
    try:
        pickled = pickled_value(value)
    except Exception as error:
        evalue = "the value of type %s can be encoded neither as JSON nor as a pickle (%s): %s"
        return b"E", error_body("ValueNotSerializable", evalue % (type_name(kind), text_of(error), bounded_repr(value)))
    return b"P", [meta_of(kind), rendered(value), pickled]


def pickled_value(value):
    """A pickle; uses cloudpickle, if installed, where pickle fails."""
    try:
        return dump(value, protocol=5)
    except (pickle.PicklingError, AttributeError, TypeError) as failure:
        try:
            import cloudpickle
        except Exception:
            raise failure from None
        return cloudpickle.dumps(value, protocol=5)


def later(name):
    """A function of rendering.py, which most workers never need."""

    def function(*arguments):
        exec(compile(RENDERING, SELF, "exec"), globals())
        return globals()[name](*arguments)

    return function


type_name, meta_of, rendered, bounded_repr = (later(name) for name in ("type_name", "meta_of", "rendered", "bounded_repr"))


def decoded_inputs(body):
    """(map, inputs) of a frame of tasks. An invalid input is replaced by an Unusable, so that only its own task fails."""
    try:
        return decode(body)
    except Exception:
        head, *lines, _ = bytes(body).split(b"\n")
        return int(head[1:-2]), [decoded_input(line[:-1] if line.endswith(b",") else line) for line in lines]


def decoded_input(text):
    try:
        return decode(text)
    except Exception as error:
        evalue = "the input cannot be decoded: %s" % text_of(error)
        return Unusable(type(error).__name__, evalue)


# ---- --reduce: a task folds some of a map's values


def values_in(path, values):
    """Yields the values in a file for `Fold`. Unlinks the file before reading the first one."""
    with open(path, "rb") as file:
        os.unlink(path)
        for source, size, pickled in values:
            data = file.read(size)
            if len(data) != size:
                raise Unusable("ValueUnavailable", "the value of task %s has %d of %d bytes" % (source, len(data), size))
            yield (source, None, data) if pickled else (source, decode(data))


class Fold:
    """Reduces values with a function of two arguments. `of` is the map's number and its work. It is called with the `values` in a file;
    without values it only checks the function's signature. Inputs from before version 11 of the database contain items instead: the
    source of the value, its JSON, and, if that is not exact, its pickle in base64."""

    def __init__(self, function, of):
        self.function, self.of = function, of

    def __call__(self, *items, file=None, values=()):
        items = values_in(file, values) if values else iter(items)
        first = next(items, None)
        if first is None:
            return self.check()
        source, total = first[0], self.value(first)
        for item in items:
            value = self.value(item)
            try:
                total = self.function(total, value)
            except BaseException as error:
                self.note(error, "the first value is that of task %s, the second that of task %s" % (source, item[0]), total, value)
                raise
            source = "%s to %s" % (source.split(" to ")[0], item[0].split(" to ")[-1])
        return total

    def check(self):
        try:
            import inspect

            signature = inspect.signature(self.function)
        except Exception:
            return  # perhaps a C function without a signature
        try:
            signature.bind(None, None)
        except TypeError as error:
            evalue = "--reduce calls the function with two values, but its parameters are %s (%s)"
            raise Unusable("TypeError", evalue % (signature, text_of(error)))

    def value(self, item):
        if len(item) < 3:
            return item[1]
        data = item[2] if type(item[2]) is bytes else base64.b64decode(item[2])
        try:
            return pickle.loads(data)
        except BaseException as error:
            self.note(error, "the value of task %s could not be unpickled" % item[0])
            raise

    def note(self, error, text, *arguments):
        """Adds a note to the end of the traceback."""
        lines = ["Reducing map %s: %s" % (self.of["map"], text)]
        lines += ["  %s: %s" % (name, bounded_repr(argument, 200)) for name, argument in zip(("first", "second"), arguments)]
        try:
            error.pcluster_note = "\n".join(lines) + "\n"
        except Exception:
            pass  # the exception does not accept attributes
