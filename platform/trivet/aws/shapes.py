"""Shapes: values of a model's types, read from JSON or text and written as JSON.

Each shape becomes one function, once. Reading converts and checks in the same pass: a value of
the wrong kind ends it at once (SerializationException), a broken constraint is collected, as AWS
reports them all together.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any

from .constraints import Violation, all_words, constraints_of, missing, shown
from .model import Model
from .refusals import not_serializable

Reader = Callable[[Any, str, list[Violation]], Any]
"""(value as it came, path to it, violations so far) -> value as the operation gets it"""

Writer = Callable[[Any], Any]

_INTEGER = re.compile(r"[+-]?\d{1,19}\Z", re.ASCII)
_BITS = {"integer": 31, "long": 63}
_JAVA_NAMES = {"integer": "an Integer", "long": "a Long", "float": "a Float", "double": "a Double"}


def camel(member: str) -> str:
    """A member's name as AWS's sentences spell it."""
    return member[:1].lower() + member[1:]


class Readers:
    """Readers of a model's shapes, each made when it is first asked for."""

    def __init__(self, model: Model, *, from_text: bool = False) -> None:
        self._shapes = model.shapes
        self._from_text = from_text  # scalars come as text: in a path, query, header or form
        self._made: dict[str, Reader] = {}

    def of(self, name: str) -> Reader:
        if name not in self._made:
            # A shape may hold itself: whoever asks while it is made looks it up when it reads.
            self._made[name] = lambda value, path, found: self._made[name](value, path, found)
            self._made[name] = self._make(name)
        return self._made[name]

    def structure(self, shape: Mapping[str, Any], members: Collection[str]) -> Reader:
        """A reader of only these members of a structure."""
        required = frozenset(shape.get("required", ()))
        fields = []
        for member in members:
            target = shape["members"][member]
            wire = target.get("locationName", member)
            reader = self.of(target["shape"])
            fields.append((member, wire, camel(member), reader, member in required))

        def read(value: Any, path: str, found: list[Violation]) -> dict[str, Any]:
            if type(value) is not dict:
                raise _not_a_collection(value)
            result: dict[str, Any] = {}
            for member, wire, name, reader, is_required in fields:
                given = value.get(wire)
                if given is not None:
                    result[member] = reader(given, f"{path}.{name}" if path else name, found)
                elif is_required:
                    found.append(missing(f"{path}.{name}" if path else name))
            return result

        return read

    def _make(self, name: str) -> Reader:
        shape = self._shapes[name]
        kind = shape["type"]
        if kind == "structure":
            return self.structure(shape, shape["members"])
        if kind == "list":
            return self._list(shape)
        if kind == "map":
            return self._map(shape)
        return self._scalar(shape)

    def _list(self, shape: Mapping[str, Any]) -> Reader:
        reader = self.of(shape["member"]["shape"])
        check = _checked(shape)
        words = self._words_of_members(shape["member"]["shape"])
        value_of = _value_shown(shape)

        def read(value: Any, path: str, found: list[Violation]) -> list[Any]:
            if type(value) is not list:
                raise _not_a_collection(value)
            check(value, path, found)
            broken: list[Violation] = []
            into = found if words is None else broken
            result = []
            for index, item in enumerate(value, start=1):
                where = f"{path}.{index}.member"
                if item is None:
                    into.append(missing(where))
                else:
                    result.append(reader(item, where, into))
            if broken:
                found.append(Violation(path, value_of(value), f"Member must satisfy {words}"))
            return result

        return read

    def _map(self, shape: Mapping[str, Any]) -> Reader:
        keys = self._scalar(self._shapes[shape["key"]["shape"]])
        values = self.of(shape["value"]["shape"])
        check = _checked(shape)
        key_words = self._words_of_members(shape["key"]["shape"])
        words = self._words_of_members(shape["value"]["shape"])
        value_of = _value_shown(shape)

        def read(value: Any, path: str, found: list[Violation]) -> dict[str, Any]:
            if type(value) is not dict:
                raise _not_a_collection(value)
            check(value, path, found)
            bad_keys: list[Violation] = []
            broken: list[Violation] = []
            into = found if words is None else broken
            result = {}
            for key, item in value.items():
                keys(key, path, bad_keys)
                where = f"{path}.{key}.member"
                if item is None:
                    into.append(missing(where))
                else:
                    result[key] = values(item, where, into)
            if bad_keys:
                found.append(Violation(path, value_of(value), f"Map keys must satisfy {key_words}"))
            if broken:
                found.append(Violation(path, value_of(value), f"Map value must satisfy {words}"))
            return result

        return read

    def _words_of_members(self, name: str) -> str | None:
        """How a list or map words a broken scalar in it; None where members word it themselves."""
        shape = self._shapes[name]
        if shape["type"] in ("structure", "list", "map"):
            return None
        return f"constraint: {all_words(constraints_of(shape))}"

    def _scalar(self, shape: Mapping[str, Any]) -> Reader:
        convert = _converter(shape, from_text=self._from_text)
        check = _checked(shape)

        def read(value: Any, path: str, found: list[Violation]) -> Any:
            value = convert(value)
            check(value, path, found)
            return value

        return read


class Writers:
    """Writers of a model's shapes as JSON values, each made when it is first asked for."""

    def __init__(self, model: Model) -> None:
        self._shapes = model.shapes
        self._made: dict[str, Writer] = {}

    def of(self, name: str) -> Writer:
        if name not in self._made:
            self._made[name] = lambda value: self._made[name](value)
            self._made[name] = self._make(name)
        return self._made[name]

    def structure(self, shape: Mapping[str, Any], members: Collection[str]) -> Writer:
        fields = {}
        for member in members:
            target = shape["members"][member]
            wire = target.get("locationName", member)
            fields[member] = (wire, self.of(target["shape"]))

        def write(value: Mapping[str, Any]) -> dict[str, Any]:
            result = {}
            for member, given in value.items():
                wire, writer = fields[member]  # KeyError: the operation made a member up
                if given is not None:
                    result[wire] = writer(given)
            return result

        return write

    def _make(self, name: str) -> Writer:
        shape = self._shapes[name]
        kind = shape["type"]
        if kind == "structure":
            return self.structure(shape, shape["members"])
        if kind == "list":
            member = self.of(shape["member"]["shape"])
            return lambda value: [member(item) for item in value]
        if kind == "map":
            values = self.of(shape["value"]["shape"])
            return lambda value: {key: values(item) for key, item in value.items()}
        return scalar_writer(shape, "unixTimestamp")


def scalar_writer(shape: Mapping[str, Any], timestamp_form: str) -> Writer:
    """A writer of one value; `timestamp_form` is the protocol's own where the shape has none."""
    if shape["type"] == "blob":
        return lambda value: base64.b64encode(value).decode()
    if shape["type"] == "timestamp":
        form = shape.get("timestampFormat", timestamp_form)
        return lambda value: timestamp(value, form)
    return lambda value: value


def timestamp(value: datetime | float, form: str) -> Any:
    """An instant as the model wants it written; a number is in seconds since the epoch."""
    seconds = value if isinstance(value, int | float) else value.timestamp()
    if form == "unixTimestamp":
        return int(seconds) if seconds == int(seconds) else round(seconds, 3)
    instant = datetime.fromtimestamp(seconds, UTC)
    if form == "rfc822":
        return format_datetime(instant, usegmt=True)
    precision = "milliseconds" if instant.microsecond else "seconds"
    return instant.isoformat(timespec=precision).replace("+00:00", "Z")


def _value_shown(shape: Mapping[str, Any]) -> Callable[[Any], str]:
    if shape.get("sensitive"):
        return lambda value: ""
    return lambda value: f" '{shown(value)}'"


def _checked(shape: Mapping[str, Any]) -> Callable[[Any, str, list[Violation]], None]:
    constraints = constraints_of(shape)
    value_of = _value_shown(shape)

    def check(value: Any, path: str, found: list[Violation]) -> None:
        for constraint in constraints:
            if not constraint.holds(value):
                found.append(Violation(path, value_of(value), constraint.words))

    return check


def _converter(shape: Mapping[str, Any], *, from_text: bool) -> Callable[[Any], Any]:
    kind = shape["type"]
    if kind in _BITS:
        return lambda value: _integer(value, kind, from_text=from_text)
    if kind in ("float", "double"):
        return lambda value: _float(value, kind, from_text=from_text)
    if kind == "boolean":
        return _boolean_from_text if from_text else _boolean
    if kind == "blob":
        return _blob
    if kind == "timestamp":
        return _instant
    return _string


def _string(value: Any) -> str:
    if type(value) is not str:
        raise _not_convertible(value, "a String")
    return value


def _integer(value: Any, kind: str, *, from_text: bool) -> int:
    if from_text and _INTEGER.match(value):
        value = int(value)
    if type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is not int or not -(1 << _BITS[kind]) <= value < 1 << _BITS[kind]:
        raise _not_convertible(value, _JAVA_NAMES[kind])
    return value


def _float(value: Any, kind: str, *, from_text: bool) -> float:
    if from_text:
        try:
            return float(value)
        except ValueError:
            raise _not_convertible(value, _JAVA_NAMES[kind]) from None
    if type(value) not in (int, float):
        raise _not_convertible(value, _JAVA_NAMES[kind])
    return float(value)


def _boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise _not_convertible(value, "a Boolean")
    return value


def _boolean_from_text(value: str) -> bool:
    if value not in ("true", "false"):
        raise _not_convertible(value, "a Boolean")
    return value == "true"


def _blob(value: Any) -> bytes:
    try:
        return base64.b64decode(_string(value), validate=True)
    except (binascii.Error, ValueError):
        raise not_serializable("The value is not valid base64.") from None


def _instant(value: Any) -> datetime:
    try:
        if type(value) in (int, float):
            return datetime.fromtimestamp(value, UTC)
        text = _string(value)
        if text.replace(".", "", 1).isdecimal():
            return datetime.fromtimestamp(float(text), UTC)
        instant = parsedate_to_datetime(text) if "," in text else datetime.fromisoformat(text)
    except (ValueError, OverflowError, OSError):
        raise _not_convertible(value, "a Timestamp") from None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _not_convertible(value: Any, java_name: str) -> Exception:
    if isinstance(value, dict | list):
        return _not_a_collection(value)
    if isinstance(value, bool):
        token = "TRUE_VALUE" if value else "FALSE_VALUE"
    else:
        token = "STRING_VALUE" if isinstance(value, str) else "NUMBER_VALUE"
    return not_serializable(f"{token} can not be converted to {java_name}")


def _not_a_collection(value: Any) -> Exception:
    if isinstance(value, dict):
        return not_serializable("Start of structure or map found where not expected.")
    if isinstance(value, list):
        return not_serializable("Start of list found where not expected")
    return not_serializable("Unexpected value type in payload")
