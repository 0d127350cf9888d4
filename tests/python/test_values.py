"""Tests of encoding values: exactly as JSON or as a pickle with a readable rendering. Worker only; run with pytest or unittest."""
import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import importlib.util
import math
import os
import pathlib
import pickle
import random
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from worker_harness import Worker  # noqa: E402

# The function evaluates a text, so that worker and test create the same value.
FILE = """
import collections, dataclasses, datetime, decimal, enum, fractions, os, pathlib, sys
sys.path.insert(0, %r)
from test_values import *
def f(text): return eval(text)
""" % os.path.dirname(os.path.abspath(__file__))

Point = collections.namedtuple("Point", "x y")


class Color(enum.IntEnum):
    RED = 1


class Text(str):
    pass


@dataclasses.dataclass
class Pair:
    a: int
    b: object


class Silent:
    def __repr__(self):
        raise SystemExit("no")


class Unfriendly:
    """Raises the given exception when pickled."""

    def __init__(self, raised):
        self.raised = raised

    def __reduce__(self):
        raise self.raised


class Fatal:
    def __reduce__(self):
        os._exit(7)


class Loud(Exception):
    def __init__(self, text):
        self.text = text

    def __str__(self):
        if isinstance(self.text, BaseException):
            raise self.text
        return self.text


def raises(error):
    raise error


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def same(a, b):
    """Deep equality including types, NaN and the sign of zero."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return float.__repr__(a) == float.__repr__(b)
    if isinstance(a, dict):
        return list(map(repr, a)) == list(map(repr, b)) and all(map(same, a.keys(), b.keys())) and all(map(same, a.values(), b.values()))
    if isinstance(a, (list, tuple, collections.deque)):
        return len(a) == len(b) and all(map(same, a, b))
    if dataclasses.is_dataclass(a):
        return same(vars(a), vars(b))
    return a == b


SCALARS = (
    "None True False 0 -1 2**63 -2**64 10**300 0.1 -0.0 5e-324 1.7976931348623157e308 float('nan') float('inf') -float('inf') "
    "'' 'a\\0b' '\\u2028\\u2029' '\\ud800' '\\ud83d\\ude00' '\U0001f600' '\"\\\\' b'\\xff\\0' 1+2j Color.RED Text('x') True+0 "
    "decimal.Decimal('1.50') fractions.Fraction(1,3) pathlib.PurePosixPath('/a') datetime.date(2020,1,2) range(3) frozenset({1})"
).split()


def made(random, depth):
    """The expression of a random value."""
    if depth == 0 or random.random() < 0.3:
        return random.choice(SCALARS)
    some = [made(random, depth - 1) for _ in range(random.randrange(4))]
    kind = random.randrange(9)
    keys = [random.choice(("'k%d'" % i, "'k%d'" % i, str(i), "(%d,)" % i, "Text('k%d')" % i, "%d.5" % i)) for i in range(len(some))]
    pairs = ", ".join("%s: %s" % pair for pair in zip(keys, some))
    if kind < 3:
        return "[%s]" % ", ".join(some)
    if kind < 5:
        return "{%s}" % pairs
    if kind == 5:
        return "(%s)" % "".join(one + "," for one in some)
    if kind == 6:
        return "collections.OrderedDict({%s})" % pairs
    if kind == 7:
        return "Point(%s, %s)" % (random.choice(SCALARS), random.choice(SCALARS))
    return "Pair(%s, [%s])" % (random.choice(SCALARS), ", ".join(some))


class ValuesTest(unittest.TestCase):
    def setUp(self):
        self.worker = Worker()
        self.addCleanup(self.worker.close)
        self.worker.define_file(1, FILE)

    def of(self, *texts):
        return self.worker.call(1, *[[text] for text in texts])

    def test_any_value_round_trips(self):
        generator = random.Random(11)
        texts = SCALARS + [made(generator, 4) for _ in range(1500)]
        kinds = collections.Counter()
        for text, record in zip(texts, self.of(*texts)):
            value = eval(text)
            self.assertIn(record.kind, "VP", text)
            self.assertTrue(same(record.value(), value), "%s came back as %r" % (text, record.value()))
            kinds[record.kind] += 1
        self.assertGreater(min(kinds.values()), 300, kinds)

    def test_plain_data_is_json(self):
        for text in ("[1, [2.5, 'a', {'b': [None, True]}], {}]", "'x'", "-0.0", "2**70", "[[]] * 3", "[{'a': i, 'b': [i]} for i in range(1000)]"):
            (record,) = self.of(text)
            self.assertEqual(record.kind, "V", text)
            self.assertTrue(same(record.json(), eval(text)), text)

    def test_integers_that_other_pythons_cannot_read_are_not_json(self):
        text = "[getattr(sys, 'set_int_max_str_digits', int)(0), %s][1]"
        for value, kind in (("10**4000", "V"), ("10**5000", "P"), ("[10**5000, 1]", "P"), ("{'a': [-10**5000]}", "P"), ("[1] * 5000", "V")):
            (record,) = self.of(text % value)
            self.assertEqual(record.kind, kind, value)
            self.assertTrue(same(record.value(), eval(value)), value)

    def test_what_stands_at_many_places_is_not_written_out_at_each(self):
        (record,) = self.of("[a := [], [a := [a, a] for _ in range(60)]][1][-1]")
        self.assertEqual(record.kind, "P")
        self.assertLess(len(record.body), 200_000)

    def test_deep_values_come_back_or_are_refused(self):
        for depth in (50, 499, 900, 100_000):
            (record,) = self.of("nested(%d)" % depth)
            if record.kind == "E":
                self.assertEqual(record.json()["ename"], "ValueNotSerializable")
            else:
                value, found = record.value(), 0
                while value:
                    value, found = value[0], found + 1
                self.assertEqual(found, depth)

    def test_renderings_are_for_people(self):
        for text, rendering, kind in (
            ("(1, (2, 'a'))", [1, [2, "a"]], "tuple"),
            ("Point(1, {2})", {"x": 1, "y": [2]}, "test_values.Point"),
            ("Pair(1, Pair(2, None))", {"a": 1, "b": {"a": 2, "b": None}}, "test_values.Pair"),
            ("{10: 1, 'b': (2.5,)}", {"10": 1, "b": [2.5]}, "dict"),
            ("{1: 'int', '1': 'str'}", {"1": "int", "'1'": "str"}, "dict"),
            ("collections.Counter('abca')", {"a": 2, "b": 1, "c": 1}, "collections.Counter"),
            ("[float('nan'), -float('inf'), 1.0]", ["NaN", "-Infinity", 1.0], "list"),
            ("Color.RED", "Color.RED", "test_values.Color"),
            ("[decimal.Decimal('1.50'), fractions.Fraction(1, 3)]", ["1.50", "1/3"], "list"),
            ("datetime.datetime(2020, 1, 2, 3)", "2020-01-02T03:00:00", "datetime.datetime"),
            ("pathlib.PurePosixPath('/a')", "/a", "pathlib.PurePosixPath"),
            ("{3, 1, 2}", [1, 2, 3], "set"),
            ("b'a\\xff'", "b'a\\xff'", "bytes"),
            ("'\\ud800'", "\\ud800", "str"),
            ("Silent()", "<repr() of a Silent failed: SystemExit>", "test_values.Silent"),
            ("(Silent(), 1)", ["<repr() of a Silent failed: SystemExit>", 1], "tuple"),
        ):
            (record,) = self.of(text)
            shown, name = record.rendering()
            self.assertEqual((shown, name.replace("pathlib._local", "pathlib")), (rendering, kind), text)

    def test_renderings_are_limited_and_name_omissions(self):
        for text, last in (
            ("tuple(range(10**6))", " more"),
            ("{i: 'x' * 100 for i in range(10**5)}", " more"),
            ("b'x' * 10**7", " more bytes)"),
            ("Text('x' * 10**7)", " more characters)"),
            ("10**100_000", " bits)"),
            ("({'a': 'x' * 10**6},)", " more characters)"),
        ):
            (record,) = self.of(text)
            self.assertLess(len(record.parts()[1]), 200_000, text)
            shown = record.rendering()[0]
            while not isinstance(shown, str):
                shown = (list(shown.values()) if isinstance(shown, dict) else shown)[-1]
            self.assertTrue(shown.endswith(last), (text, shown[-100:]))
        self.assertIn(record.rendering()[1], "tuple")

    @unittest.skipUnless(importlib.util.find_spec("numpy"), "needs numpy")
    def test_numpy(self):
        self.worker.define_file(2, "import numpy as np\ndef f(text): return eval(text)")
        for text, rendering in (
            ("np.float64(1.5)", 1.5),
            ("np.int32(3)", 3),
            ("np.bool_(True)", True),
            ("np.arange(4).reshape(2, 2)", [[0, 1], [2, 3]]),
            ("np.array([1.0, np.nan])", [1.0, "NaN"]),
            ("np.array(7)", 7),
            ("{'a': np.float32(2)}", {"a": 2.0}),
            ("np.array(['2020-01-01'], dtype='M8[D]')", ["2020-01-01"]),
            ("np.array([(1, 2.5)], dtype=[('a', 'i4'), ('b', 'f8')])", [[1, 2.5]]),
        ):
            (record,) = self.worker.call(2, [text])
            self.assertEqual((record.kind, record.rendering()[0]), ("P", rendering), text)
        (record,) = self.worker.call(2, ["np.zeros((1000, 1000))"])
        self.assertLess(len(record.parts()[1]), 200_000)
        shown = record.rendering()[0]
        self.assertEqual(shown[-1], "\u2026 %d more" % (1001 - len(shown)))
        self.assertEqual(record.value().shape, (1000, 1000))

    @unittest.skipUnless(importlib.util.find_spec("pandas"), "needs pandas")
    def test_tables_are_lists_of_records(self):
        self.worker.define_file(2, "import pandas as pd\ndef f(text): return eval(text)")
        for text, rendering in (
            ("pd.DataFrame({'a': [1, 2], 'b': ['x', None]})", [{"a": 1, "b": "x"}, {"a": 2}]),
            ("pd.DataFrame({'a': [1]}, index=['r'])", [{"index": "r", "a": 1}]),
            ("pd.Series([1, 2.5])", [1.0, 2.5]),
            ("pd.Series([1, 2], index=['a', 'b'])", {"a": 1, "b": 2}),
            ("pd.Timestamp('2020-01-01')", "2020-01-01T00:00:00"),
        ):
            (record,) = self.worker.call(2, [text])
            shown = record.rendering()[0]
            if isinstance(shown, list) and isinstance(shown[-1], dict) and shown[-1].get("b") in (None, "NaN"):
                shown[-1].pop("b", None)  # how a missing text reads depends on the version of pandas
            self.assertEqual(shown, rendering, text)
        (record,) = self.worker.call(2, ["pd.DataFrame({'a': range(10**6)})"])
        self.assertTrue(record.rendering()[0][-1].endswith(" more"))
        self.assertLess(len(record.parts()[1]), 200_000)

    def test_a_value_whose_encoding_fails_fails_alone(self):
        texts = ["1", "Unfriendly(RecursionError('r'))", "2", "Unfriendly(MemoryError())", "Unfriendly(KeyboardInterrupt())"]
        texts += ["Unfriendly(SystemExit(3))", "[Unfriendly(Loud(ValueError()))]", "3"]
        records = self.of(*texts)
        self.assertEqual([record.json() for record in records if record.kind == "V"], [1, 2, 3])
        names = [record.json()["ename"] for record in records if record.kind == "E"]
        self.assertEqual(names, ["ValueNotSerializable"] * 2 + ["KeyboardInterrupt", "SystemExit", "ValueNotSerializable"])

    def test_a_value_that_exits_python_affects_only_its_own_task(self):
        self.worker.tasks(1, [["1"], ["Fatal()"], ["2"]])
        self.assertEqual(self.worker.record().json(), 1)
        self.assertIsNone(self.worker.record())

    def test_exceptions_with_arbitrary_texts(self):
        text = ["Loud(KeyboardInterrupt())", "Loud(SystemExit())", "Loud(7)", "Loud('x' * 10**8)", "Loud(Text('t'))", "Loud('\\udcff')"]
        records = self.of("1", *["raises(%s)" % one for one in text], "2")
        self.assertEqual([record.json() for record in records if record.kind == "V"], [1, 2])
        errors = [record.json() for record in records if record.kind == "E"]
        self.assertEqual([error["ename"] for error in errors], ["Loud"] * 6)
        self.assertEqual(errors[0]["evalue"], "<str() of the Loud failed: KeyboardInterrupt>")
        self.assertLess(len(records[4].body), 1_000_000)
        self.assertEqual([error["evalue"] for error in errors[4:]], ["t", "\\udcff"])

    def test_an_invalid_input_fails_alone(self):
        poison = [b"[" + b"7" * 5000 + b"]", b"[" * 100_000 + b"]" * 100_000, b'["\\ud800"]', b'["ok"]', b"{} "]
        self.worker.define_file(2, "def f(x=0): return len(str(x))")
        self.worker.texts(2, 0, [b"[1]"] + poison + [b"[22]"])
        self.worker.next = len(poison) + 2
        os.write(self.worker.tokens, b"g" * self.worker.next)
        records = [self.worker.record() for _ in range(self.worker.next)]
        kinds = [record.json() if record.kind == "V" else record.json()["ename"] for record in records]
        many = "ValueError" if hasattr(sys, "set_int_max_str_digits") else 5000
        self.assertEqual(kinds, [1, many, "RecursionError", 1, 2, 1, 2])
        self.assertIn("the input cannot be decoded", records[2].json()["evalue"])
        self.assertEqual([record.ticket for record in records], list(range(7)))

    def test_folds_get_exact_values_and_errors_name_them(self):
        import base64

        self.worker.define_file(2, FILE + "def add(a, b): return a + b\ndef one(a): pass\n", "add", reduces={"map": 7, "work": {}})
        item = lambda task, value: [task, None, base64.b64encode(pickle.dumps(value)).decode()]  # noqa: E731
        (record,) = self.worker.call(2, [["7.0", 1], item("7.1", fractions.Fraction(1, 3)), ["7.2", 2]])
        self.assertEqual(record.value(), fractions.Fraction(10, 3))
        (record,) = self.worker.call(2, [["7.0 to 7.4", [1]], item("7.5", [(2,)]), item("7.6", (3,))])
        self.assertEqual(record.kind, "E")
        for words in ("Reducing map 7", "task 7.0 to 7.5", "task 7.6", "first: [1, (2,)]", "second: (3,)"):
            self.assertIn(words, record.json()["traceback"])
        # Without values it checks the signature.
        self.worker.define_file(3, "def f(a): pass", reduces={"map": 7, "work": {}})
        self.worker.define_file(4, "def f(a, b, c): pass", reduces={"map": 7, "work": {}})
        self.worker.define(5, {"kind": "call", "from": {"module": {"module": "builtins"}}, "function": "max"}, reduces={"map": 7, "work": {}})
        records = [self.worker.call(number, [])[0] for number in (2, 3, 4, 5)]
        self.assertEqual([record.kind for record in records], ["V", "E", "E", "V"])
        self.assertIn("--reduce calls the function with two values", records[1].json()["evalue"])

    def test_folds_read_values_from_a_file_and_remove_it(self):
        self.worker.define_file(2, "def add(a, b): return a + b", "add", reduces={"map": 7, "work": {}})
        values = [b"[1]", pickle.dumps([(2,)]), b"[3]", pickle.dumps([{4}])]
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "values")

            def fold(content):
                with open(path, "wb") as file:
                    file.write(content)
                named = [["7.%d" % k, len(value), k % 2 == 1] for k, value in enumerate(values)]
                (record,) = self.worker.call(2, {"file": path, "values": named})
                self.assertEqual(os.listdir(folder), [])
                return record

            self.assertEqual(fold(b"".join(values)).value(), [1, (2,), 3, {4}])
            self.assertIn("the value of task 7.3 has", fold(b"".join(values)[:-1]).json()["evalue"])
            self.assertIn("task 7.1 could not be unpickled", fold(values[0] + b"x" * 100).json()["traceback"])

    def test_values_of_classes_in_the_maps_file_are_found_by_the_fold(self):
        import base64

        shapes = "class C:\n def __init__(s, n): s.n = n\ndef f(n): return C(n)"
        self.worker.define_file(2, shapes, name="shapes_of_map.py")
        pickled = [base64.b64encode(record.parts()[2]).decode() for record in self.worker.call(2, [1], [2])]
        fresh = Worker()
        self.addCleanup(fresh.close)
        # The client puts both files into one bundle.
        fresh.define_file(1, "def f(a, b): return a.n + b.n", reduces={"map": 7, "work": {}})
        with open(os.path.join(fresh.bundles[-1].name, "shapes_of_map.py"), "w") as file:
            file.write(shapes)
        (record,) = fresh.call(1, [["7.0", None, pickled[0]], ["7.1", None, pickled[1]]])
        self.assertEqual(record.json(), 3, record.body)


if __name__ == "__main__":
    unittest.main()
