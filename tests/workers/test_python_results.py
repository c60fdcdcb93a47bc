"""What a Python handler returns, as its caller sees it. The expected texts are AWS's."""

from __future__ import annotations

import json
import sys

import pytest
from tests.workers.conftest import Run
from tests.workers.driver import event_body

from trivet_worker import wire

_TABLE = """
import collections, datetime, decimal, enum
Pair = collections.namedtuple("Pair", "a b")
class Record:
    def _asdict(self):
        return {"x": 1}
class Text(str, enum.Enum):
    A = "v"
class Number(enum.IntEnum):
    A = 3
class Loud(float):
    def __repr__(self):
        return "LOUD"
D = decimal.Decimal
circle = []
circle.append(circle)
deep = []
for _ in range(100_000):
    deep = [deep]

def handler(event, context):
    return eval(event)
"""

_TYPE_ERROR = "Object of type {} is not JSON serializable"
_KEY_ERROR = "keys must be str, int, float, bool or None, not {}"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("None", "null"),
        ("{'statusCode': 200, 'body': 'x'}", '{"statusCode": 200, "body": "x"}'),
        ("(1, 2)", "[1, 2]"),
        ("[True, 0.1, -0.0, 1e22]", "[true, 0.1, -0.0, 1e+22]"),
        ("{'d': D('1.10')}", '{"d": 1.10}'),
        ("[D('NaN'), D('-NaN'), D('Infinity'), D('1E+30')]", "[NaN, NaN, Infinity, 1E+30]"),
        ("float('nan')", "NaN"),
        ("float('-inf')", "-Infinity"),
        ("b'\\xff raw'", b"\xff raw"),
        ("{'b': b'x'}", '{"b": "x"}'),
        ("{b'k': 1}", '{"k": 1}'),
        ("{1: 1, 1.5: 2, None: 4, True: 5}", '{"1": 5, "1.5": 2, "null": 4}'),
        ("Pair(1, [Pair(2, D('3.0'))])", '{"a": 1, "b": [{"a": 2, "b": 3.0}]}'),
        ("[Record()]", '[{"x": 1}]'),
        ("{Text.A: Number.A}", '{"v": 3}'),
        ("Loud(1.5)", "1.5"),
        ("collections.OrderedDict(a=1)", '{"a": 1}'),
        ("'\\u00e9\\u2028</>'", '"é\u2028</>"'),
    ],
)
def test_a_result_is_json_as_simplejson_writes_it(
    run: Run, expression: str, expected: str | bytes
) -> None:
    answer = run(_TABLE).invoke(expression)
    if isinstance(expected, str):
        if sys.version_info < (3, 12):
            expected = expected.encode("ascii", "backslashreplace").decode()
            expected = expected.replace("\\xe9", "\\u00e9")
        expected = expected.encode()
    assert (answer.kind, answer.body) == (wire.RESULT, expected)


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("{'a': {1, 2}}", _TYPE_ERROR.format("set")),
        ("datetime.datetime(2020, 1, 1)", _TYPE_ERROR.format("datetime")),
        ("1j", _TYPE_ERROR.format("complex")),
        ("bytearray(b'x')", _TYPE_ERROR.format("bytearray")),
        ("context", _TYPE_ERROR.format("LambdaContext")),
        ("{(1, 2): 1}", _KEY_ERROR.format("tuple")),
        ("{D(1): 1}", _KEY_ERROR.format("Decimal")),
        ("{'b': b'\\xff'}", "'utf-8' codec can't decode byte 0xff in position 0: "),
        ("circle", "Circular reference detected"),
        ("deep", "maximum recursion depth exceeded"),
        ("10 ** 5000", "Exceeds the limit (4300"),
    ],
)
def test_a_result_that_json_cannot_hold_is_a_marshal_error(
    run: Run, expression: str, reason: str
) -> None:
    environment = run(_TABLE)
    answer = environment.invoke(expression, request_id="the-id")
    assert answer.kind == wire.ERROR
    assert list(answer.json) == ["errorMessage", "errorType", "requestId", "stackTrace"]
    assert answer.json["errorMessage"].startswith(f"Unable to marshal response: {reason}")
    assert answer.json["errorType"] == "Runtime.MarshalError"
    assert answer.json["requestId"] == "the-id"
    assert answer.json["stackTrace"] == []
    assert environment.invoke("1").body == b"1"


def test_half_a_surrogate_pair_ends_nothing(run: Run) -> None:
    environment = run(_TABLE)
    answer = environment.invoke("'\\ud800'")
    if sys.version_info < (3, 12):
        assert answer.body == b'"\\ud800"'
    else:
        assert answer.json["errorType"] == "Runtime.MarshalError"
    assert environment.invoke("1").body == b"1"


def test_the_largest_result_is_delivered(run: Run) -> None:
    size = wire.MAX_RESPONSE_BYTES - len('""')
    answer = run(_TABLE).invoke(f"'x' * {size}")
    assert (answer.kind, len(answer.body)) == (wire.RESULT, wire.MAX_RESPONSE_BYTES)


def test_one_byte_more_is_refused_in_awss_words(run: Run) -> None:
    environment = run(_TABLE)
    answer = environment.invoke(f"'x' * {wire.MAX_RESPONSE_BYTES - 1}")
    assert answer.kind == wire.ERROR
    assert answer.json == {
        "errorMessage": "Response payload size exceeded maximum allowed payload size "
        "(6291556 bytes).",
        "errorType": "Function.ResponseSizeTooLarge",
    }
    assert environment.invoke("1").body == b"1"


def test_the_largest_event_arrives_whole(run: Run) -> None:
    payload = json.dumps("y" * (wire.MAX_REQUEST_BYTES - 2)).encode()
    environment = run("def handler(event, context): return len(event), set(event) == {'y'}")
    assert environment.invoke_raw(payload).json == [wire.MAX_REQUEST_BYTES - 2, True]


def test_an_event_that_is_no_json_is_an_unmarshal_error(run: Run) -> None:
    answer = run(_TABLE).invoke_raw(b"nope")
    assert answer.json["errorType"] == "Runtime.UnmarshalError"
    assert answer.json["errorMessage"] == (
        "Unable to unmarshal input: Expecting value: line 1 column 1 (char 0)"
    )


def test_events_that_wait_in_the_socket_are_run_one_after_the_other(run: Run) -> None:
    environment = run("def handler(event, context): return [event, context.aws_request_id]")
    attempts = [
        environment.send(wire.EVENT, event_body(b"%d" % n, request_id=f"id-{n}")) for n in range(50)
    ]
    answers = [environment.receive() for _ in attempts]
    assert [answer.attempt for answer in answers] == attempts
    assert [answer.json for answer in answers] == [[n, f"id-{n}"] for n in range(50)]


def test_initialisation_runs_once_and_globals_stay(run: Run) -> None:
    environment = run(
        "calls = []\nprint('initialised')\n"
        "def handler(event, context):\n    calls.append(event)\n    return calls\n"
    )
    assert [environment.invoke(n).json for n in range(3)] == [[0], [0, 1], [0, 1, 2]]
    assert environment.log() == "initialised\n"


def test_memory_is_reported_with_every_answer(run: Run) -> None:
    environment = run("def handler(event, context): return len(bytearray(event))")
    small = environment.invoke(1).peak_kib
    large = environment.invoke(50_000_000).peak_kib
    assert 1_000 < small < 40_000
    assert large - small > 40_000
