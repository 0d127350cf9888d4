# ---- values: how a value, an error or a text is encoded. One namespace with the other parts.
def encoded(value):
    """JSON text of plain data, whatever strings are in it."""
    text = encode(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return encode_ascii(value).encode()


def exact_text(text):
    """The same as a plain str that UTF-8 holds: no subclass, and lone surrogates written as escapes."""
    if type(text) is str and text.isascii():
        return text
    return "".join((text, "")).encode("utf-8", "backslashreplace").decode()


def error_body(ename, evalue, lines=""):
    said = [exact_text(cut(text, TEXT_LENGTH)) for text in (ename, evalue, lines)]
    return encoded(dict(zip(("ename", "evalue", "traceback"), said)))


def text_of(error):
    """What an exception says of itself, which is its own code: it may raise anything."""
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


# What JSON gives back as it was: these types, not what is derived from them.
SCALARS = frozenset((int, str, float, bool, type(None)))
PLAIN = SCALARS | {list, dict}
STRINGS = frozenset((str,))
DEEPEST = 500  # levels of lists and dicts in JSON
DIGITS = 4300  # of an integer that every Python reads
LONGEST = 14_000  # bits of an integer in JSON
MANY = 1 << 16  # elements from which on it is asked whether one list or dict stands at many places


def is_plain(value):
    """Whether a list or dict holds nothing but what JSON gives back equal and with the same types. Level by level, in C's loops."""
    if type(value) is list:
        inner = value
    elif STRINGS.issuperset(map(type, value)):
        inner = value.values()
    else:
        return False
    seen = 0
    for _ in range(DEEPEST):
        kinds = set(map(type, inner))
        if SCALARS.issuperset(kinds):
            return True
        if not PLAIN.issuperset(kinds):
            return False
        lists = [one for one in inner if type(one) is list] if list in kinds else ()
        dicts = [one for one in inner if type(one) is dict] if dict in kinds else ()
        seen += len(inner)
        if seen > MANY and len(set(map(id, lists)) | set(map(id, dicts))) < len(lists) + len(dicts):
            return False  # JSON would write it out at each place
        inner = list(chain(lists))
        if dicts:
            if not STRINGS.issuperset(map(type, chain(dicts))):
                return False
            inner += chain(map(dict.values, dicts))
    return False


def has_long_integer(body):
    """Whether JSON text may hold an integer that other Pythons do not read: this one then writes what they do not."""
    limit = getattr(sys, "get_int_max_str_digits", int)()  # missing before 3.8.14, as if there were no limit
    return limit != DIGITS and re.search(b"[0-9]{%d}" % (DIGITS + 1), body) is not None


def encode_value(value):
    """(kind, body) of a value: its JSON where that is exact, else parts: what it is, a rendering, its pickle."""
    kind = type(value)
    try:
        if kind is float:
            if value - value == 0.0:
                return b"V", repr(value).encode()
        elif kind is int:
            if value.bit_length() < LONGEST:
                return b"V", b"%d" % value
        elif kind is str or kind is bool or ((kind is dict or kind is list) and is_plain(value)):
            body = encode(value).encode()
            if len(body) <= DIGITS or not has_long_integer(body):
                return b"V", body
    except (ValueError, RecursionError, OverflowError, MemoryError, RuntimeError):
        pass  # not finite, half of a surrogate pair, too many digits, changed by a thread meanwhile
    try:
        pickled = pickled_value(value)
    except Exception as error:
        evalue = "the value is of type %s, which neither JSON nor pickle can hold (%s): %s"
        return b"E", error_body("ValueNotSerializable", evalue % (type_name(kind), text_of(error), bounded_repr(value)))
    return b"P", [meta_of(kind), rendered(value), pickled]


def pickled_value(value):
    """A pickle; one of cloudpickle's where pickle itself fails and that is installed."""
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
    """(map, inputs) of a frame of tasks. An input that cannot be decoded is an Unusable in its place, for its own task."""
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
    """The values that are in a file, one after the other, as `Fold` takes them. The file has no name any more when the first one is read."""
    with open(path, "rb") as file:
        os.unlink(path)
        for whose, size, pickled in values:
            data = file.read(size)
            if len(data) != size:
                raise Unusable("ValueUnavailable", "the value of task %s has %d of %d bytes" % (whose, len(data), size))
            yield (whose, None, data) if pickled else (whose, decode(data))


class Fold:
    """Reduces values with a function of two. `of` is the map's number and its work. It is called with the `values` that a file has; without
    any it is asked whether the function can be called so at all. As inputs from before version 11 of the database have them, with items:
    whose value it is, its JSON, and where that is not exact its pickle in base64."""

    def __init__(self, function, of):
        self.function, self.of = function, of

    def __call__(self, *items, file=None, values=()):
        items = values_in(file, values) if values else iter(items)
        first = next(items, None)
        if first is None:
            return self.check()
        whose, total = first[0], self.value(first)
        for item in items:
            value = self.value(item)
            try:
                total = self.function(total, value)
            except BaseException as error:
                self.note(error, "the first value is that of task %s, the second that of task %s" % (whose, item[0]), total, value)
                raise
            whose = "%s to %s" % (whose.split(" to ")[0], item[0].split(" to ")[-1])
        return total

    def check(self):
        try:
            import inspect

            signature = inspect.signature(self.function)
        except Exception:
            return  # one of C's, perhaps, that does not say
        try:
            signature.bind(None, None)
        except TypeError as error:
            evalue = "--reduce calls the function with two values, and it has the parameters %s (%s)"
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
        """What the traceback ends with."""
        lines = ["Reducing map %s: %s" % (self.of["map"], text)]
        lines += ["  %s: %s" % (name, bounded_repr(argument, 200)) for name, argument in zip(("first", "second"), arguments)]
        try:
            error.pcluster_note = "\n".join(lines) + "\n"
        except Exception:
            pass  # it takes no attributes
