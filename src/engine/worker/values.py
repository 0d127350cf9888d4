# ---- values: how a value, an error or a text is encoded. One namespace with the other parts.
def encoded(value):
    """JSON text of plain data, whatever strings are in it."""
    text = encode(value)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return encode_ascii(value).encode()


def error_body(ename, evalue, lines=""):
    return encoded({"ename": ename, "evalue": cut(evalue, TEXT_LENGTH), "traceback": cut(lines, TEXT_LENGTH)})


def text_of(error):
    try:
        return str(error)
    except Exception as failure:
        return "<str() of the %s failed: %s>" % (type(error).__name__, type(failure).__name__)


def own_frames_hidden(trace):
    while trace is not None and trace.tb_frame.f_code.co_filename == SELF:
        trace = trace.tb_next
    return trace


def formatted(error):
    try:
        return "".join(traceback.format_exception(type(error), error, own_frames_hidden(error.__traceback__)))
    except Exception:
        return "%s: %s\n" % (type(error).__name__, text_of(error))


def encode_value(value):
    """(kind, body) of a value: JSON where it can be, otherwise a pickle with its repr."""
    try:
        return b"V", encoded(value)
    except (TypeError, ValueError, RecursionError, OverflowError):
        pass
    try:
        shown = repr(value)
    except Exception as error:
        shown = "<repr() failed: %s>" % text_of(error)
    shown = shown if len(shown) <= REPR_LENGTH else shown[: REPR_LENGTH - 1] + "\u2026"
    try:
        pickled = pickle.dumps(value, protocol=4)
    except Exception as error:
        name = type(value).__module__ + "." + type(value).__qualname__
        evalue = "the value is of type %s, which neither JSON nor pickle can hold (%s): %s" % (name, text_of(error), shown)
        return b"E", error_body("ValueNotSerializable", evalue)
    return b"P", encoded({"pickled": base64.b64encode(pickled).decode(), "repr": shown})


def encode_integer(value):
    try:
        return b"V", b"%d" % value
    except ValueError:  # more digits than this Python writes
        return encode_value(value)
