# ---- rendering: human-readable JSON of a value that JSON cannot represent exactly. Compiled for the first such value; shares a
# namespace with the other modules. Limited in depth, size and time; omitted parts are marked.
RENDERED_SIZE = 64 << 10  # approximate number of characters of one rendering
RENDERED_DEPTH = 40
RENDERED_TIME = 0.5  # seconds
SORTED_SIZE = 1 << 12  # larger sets are not sorted
NUMBERS = frozenset((int, float, bool))
AS_TEXT = frozenset(
    ("decimal.Decimal", "fractions.Fraction", "uuid.UUID", "datetime.timedelta", "numpy.datetime64", "numpy.timedelta64", "pandas.Timedelta")
)


def bounded_repr(value, length=REPR_LENGTH):
    try:
        text = exact_text(repr(value))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return "<repr() of a %s failed: %s>" % (type(value).__name__, type(error).__name__)
    return text if len(text) <= length else text[: length - 1] + "\u2026"


@functools.lru_cache(maxsize=256)
def type_name(kind):
    """`dict`, `collections.Counter`."""
    module, name = kind.__module__, kind.__qualname__
    return exact_text(name if module == "builtins" else "%s.%s" % (module, name))


@functools.lru_cache(maxsize=256)
def meta_of(kind):
    return encoded({"type": type_name(kind)})


@functools.lru_cache(maxsize=256)
def names_of(kind):
    """Names of a type and its base classes."""
    return frozenset("%s.%s" % (base.__module__, base.__qualname__) for base in kind.__mro__)


class Rendering:
    def __init__(self):
        self.left = RENDERED_SIZE
        self.until = time.monotonic() + RENDERED_TIME
        self.above = set()

    def full(self):
        return self.left <= 0 or time.monotonic() > self.until

    def value(self, value):
        """Converts a value to plain JSON data."""
        kind = type(value)
        if value is None or kind is bool:
            self.left -= 6
            return value
        if kind is int:
            return self.integer(value)
        if kind is float:
            self.left -= 8
            return value if math.isfinite(value) else not_finite(value)
        if kind is str:
            return self.text(value)
        if len(self.above) > RENDERED_DEPTH or id(value) in self.above or self.full():
            self.left -= 5
            return "..."
        self.above.add(id(value))
        try:
            return self.other(value, kind)
        except KeyboardInterrupt:
            raise
        except BaseException:
            return self.text(bounded_repr(value))
        finally:
            self.above.discard(id(value))

    def other(self, value, kind):
        names = names_of(kind)
        if "enum.Enum" in names:
            return self.text("%s.%s" % (kind.__name__, value.name))
        if not AS_TEXT.isdisjoint(names) or any(name.startswith("pathlib.") and name.endswith("PurePath") for name in names):
            return self.text(str(value))
        if not names.isdisjoint(("datetime.date", "datetime.time")):
            return self.text(value.isoformat())
        if "numpy.ndarray" in names:
            return self.array(value)
        if "numpy.generic" in names:
            plain = value.item()
            return self.value(plain if type(plain) is not kind else float(plain))
        if "pandas" in kind.__module__:
            return self.pandas(value, kind.__name__)
        if isinstance(value, int):
            return self.integer(int.__int__(value))
        if isinstance(value, float):
            return self.value(float.__float__(value))
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return self.mapping(dict.items(value), len(value))
        if isinstance(value, tuple):
            fields = getattr(kind, "_fields", None)
            if type(fields) is tuple and len(fields) == tuple.__len__(value):
                return self.mapping(zip(fields, tuple.__iter__(value)), len(fields))
            return self.sequence(tuple.__iter__(value), tuple.__len__(value))
        if isinstance(value, list):
            return self.sequence(list.__iter__(value), list.__len__(value))
        if isinstance(value, (set, frozenset)):
            return self.sequence(iter(in_order(value)), len(value))
        if isinstance(value, (bytes, bytearray)):
            return self.bytes(value)
        if "collections.deque" in names or kind is range:
            return self.sequence(iter(value), len(value))
        fields = getattr(kind, "__dataclass_fields__", None) or [field.name for field in getattr(kind, "__attrs_attrs__", ())]
        if fields:
            present = [name for name in fields if hasattr(value, name)]
            return self.mapping(((name, getattr(value, name)) for name in present), len(present))
        return self.text(bounded_repr(value))

    def integer(self, value):
        if -(1 << 64) < value < 1 << 64:
            self.left -= 8
            return value
        self.left -= min(value.bit_length() // 3, 3000)
        if value.bit_length() < 10_000:  # all Pythons can write this many digits
            return value
        shown = hex(value)[:200]
        return "%s\u2026 (%d bits)" % (shown, value.bit_length())

    def text(self, value):
        value = exact_text(value)
        limit = max(self.left, 200)
        self.left -= len(value)
        if len(value) > limit:
            return "%s\u2026 (%d more characters)" % (value[:limit], len(value) - limit)
        return value

    def bytes(self, value):
        limit = max(self.left // 4, 50)
        shown = repr(bytes(value[:limit]))
        self.left -= len(shown)
        return shown if len(value) <= limit else "%s\u2026 (%d more bytes)" % (shown, len(value) - limit)

    def sequence(self, items, length):
        """A list of the `items`, of which there are `length`."""
        first = list(itertools.islice(items, max(self.left // 6, 0) + 1))
        if NUMBERS.issuperset(map(type, first)) and are_finite(first):
            self.left -= 6 * len(first)
            shown = first
        else:
            shown = []
            for item in first:
                if self.full():
                    break
                shown.append(self.value(item))
        if len(shown) < length:
            shown.append("\u2026 %d more" % (length - len(shown)))
        return shown

    def mapping(self, items, length):
        shown = {}
        for key, item in items:
            if self.full():
                shown["\u2026"] = "%d more" % (length - len(shown))
                break
            name = key_text(key)
            if name in shown:
                name = bounded_repr(key, 200)
            while name in shown:
                name += "'"
            self.left -= len(name) + 4
            shown[name] = self.value(item)
        return shown

    def array(self, value):
        if value.ndim == 0:
            return self.value(value.item())
        if value.ndim == 1:
            some = value[: max(self.left // 6, 1) + 1]
            return self.sequence(iter(some.tolist() if some.dtype.kind not in "mM" else map(str, some)), len(value))
        return self.sequence(iter(value), len(value))

    def pandas(self, value, name):
        if name == "DataFrame":
            named = type(value.index).__name__ != "RangeIndex"
            columns = (["index"] if named else []) + [key_text(column) for column in value.columns]
            some = value.iloc[: self.left // 4 // max(len(columns), 1) + 1]
            rows = (Record(columns, row) for row in some.itertuples(index=named, name=None))
            return self.sequence(rows, len(value))
        if name == "Series":
            some = value.iloc[: self.left // 4 + 1]
            if type(value.index).__name__ == "RangeIndex":
                return self.sequence(iter(some.tolist()), len(value))
            return self.mapping(zip(some.index.tolist(), some.tolist()), len(value))
        if name.endswith("Index"):
            return self.sequence(iter(value[: self.left // 4 + 1].tolist()), len(value))
        return self.text(str(value))


class Record(dict):
    """One row of a table; duplicate column names are made unique."""

    def __init__(self, columns, row):
        super().__init__()
        for column, item in zip(columns, row):
            while column in self:
                column += "'"
            self[column] = item


def in_order(values):
    try:
        return sorted(values) if len(values) <= SORTED_SIZE else values
    except Exception:
        return values


def not_finite(value):
    return "NaN" if value != value else "Infinity" if value > 0 else "-Infinity"


def are_finite(numbers):
    try:
        return all(map(math.isfinite, numbers))
    except OverflowError:  # an integer too large for a float
        return False


def key_text(key):
    if type(key) is int and -(1 << 64) < key < 1 << 64:
        return str(key)
    if isinstance(key, str):
        return exact_text(key)[:RENDERED_SIZE]
    if type(key) is float and not math.isfinite(key):
        return not_finite(key)
    if type(key).__module__.partition(".")[0] == "numpy" and hasattr(key, "item"):
        key = key.item()
    return bounded_repr(key, 200)


def rendered(value):
    """Human-readable JSON text."""
    try:
        return encode(Rendering().value(value)).encode()
    except KeyboardInterrupt:
        raise
    except BaseException:
        return encode(bounded_repr(value)).encode()
