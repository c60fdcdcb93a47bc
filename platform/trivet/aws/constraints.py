"""Constraints: what AWS's models demand of a value, and AWS's words when it is not met.

The words are those of real answers. A scalar names each constraint it breaks; a list or a map of
scalars is shown whole, with all constraints of its members, however many members break one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from trivet.errors import CallerError, TrivetError, ValidationFailed

from .refusals import Refused

NOT_NULL = "Member must not be null"

# A value is echoed to its sender, but not without bound.
_SHOWN_CHARACTERS = 4096

# What a service calls a broken constraint, where it is not ValidationException.
_ERROR_TYPES = {
    "apigatewayv2": "BadRequestException",
    "iam": "ValidationError",
    "logs": "InvalidParameterException",
    "sts": "ValidationError",
}

# Java's classes that Python does not know, as they are used inside the brackets of the models'
# patterns. The models that name letters allow "_" beside them, so \w is exact there.
_UNICODE_CLASSES = {
    r"\p{L}": r"\w",
    r"\p{N}": r"\w",
    r"\p{M}": r"\u0300-\u036f",
    r"\p{P}": r"!-#%-*,-/:;?@\[-\]_{}\u00a1\u00a7\u00ab\u00b6\u00b7\u00bb\u00bf\u2010-\u2027",
    r"\p{S}": r"$+<->^`|~\u00a2-\u00a9\u00ac\u00ae-\u00b1\u00b4\u2044\u20a0-\u20c0",
    r"\p{Zs}": r" \u00a0\u1680\u2000-\u200a\u202f\u205f\u3000",
    r"\p{Z}": r" \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000",
    r"\p{Graph}": "!-~",
    r"\p{Print}": " -~",
    r"\p{ASCII}": r"\x00-\x7f",
    r"\p{Alnum}": "a-zA-Z0-9",
    r"\p{Alpha}": "a-zA-Z",
    r"\p{Digit}": "0-9",
    r"\p{Space}": r" \t\n\x0b\f\r",
}


@dataclass(frozen=True, slots=True)
class Constraint:
    holds: Callable[[Any], object]  # anything false: broken
    words: str


@dataclass(frozen=True, slots=True)
class Violation:
    """One sentence of a validation error."""

    path: str  # "memorySize", "environment.variables"
    value: str  # " 'X'", " null", or nothing where the model calls the value sensitive
    words: str

    def __str__(self) -> str:
        return f"Value{self.value} at '{self.path}' failed to satisfy constraint: {self.words}"


def missing(path: str) -> Violation:
    return Violation(path, " null", NOT_NULL)


def shown(value: Any) -> str:
    """A value as AWS prints it into its sentences."""
    if isinstance(value, bool):
        text = "true" if value else "false"
    elif isinstance(value, list):
        text = f"[{', '.join(shown(item) for item in value)}]"
    elif isinstance(value, dict):
        text = f"{{{', '.join(f'{key}={shown(item)}' for key, item in value.items())}}}"
    elif isinstance(value, bytes):
        text = f"java.nio.HeapByteBuffer[pos=0 lim={len(value)} cap={len(value)}]"
    else:
        text = str(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def constraints_of(shape: Mapping[str, Any]) -> tuple[Constraint, ...]:
    """The constraints that a shape of the model puts on its own value, in AWS's order."""
    found: list[Constraint] = []
    counts_length = shape["type"] in ("string", "blob", "list", "map")
    size = "length" if counts_length else "value"
    measure: Callable[[Any], Any] = len if counts_length else _itself
    if "max" in shape and shape["type"] != "structure":
        found.append(_at_most(measure, shape["max"], size))
    if "min" in shape and shape["type"] != "structure":
        found.append(_at_least(measure, shape["min"], size))
    if "pattern" in shape:
        words = f"Member must satisfy regular expression pattern: {shape['pattern']}"
        found.append(Constraint(_fits(shape["pattern"]), words))
    if "enum" in shape:
        words = f"Member must satisfy enum value set: [{', '.join(shape['enum'])}]"
        found.append(Constraint(frozenset(shape["enum"]).__contains__, words))
    return tuple(found)


def all_words(constraints: Sequence[Constraint]) -> str:
    return f"[{', '.join([*(c.words for c in constraints), NOT_NULL])}]"


def refusal(service: str, violations: Sequence[Violation]) -> TrivetError:
    """The error that AWS answers to these violations."""
    if service == "lambda":
        # Lambda itself, not the layer in front of it, looks at the runtime: after all else.
        others = [v for v in violations if v.path != "runtime"]
        if not others:
            words = violations[0].words
            value = violations[0].value[2:-1]
            message = f"Value {value} at 'runtime' failed to satisfy constraint: {words}"
            return CallerError(f"{message} or be a valid ARN")
        violations = others
    count = len(violations)
    message = (
        f"{count} validation error{'s' if count > 1 else ''} detected: "
        f"{'; '.join(str(violation) for violation in violations)}"
    )
    if service == "lambda" and all(v.path == "functionName" for v in violations):
        return CallerError(message)
    if service in _ERROR_TYPES:
        return Refused(_ERROR_TYPES[service], message)
    return ValidationFailed(message)


def _itself(value: Any) -> Any:
    return value


def _at_most(measure: Callable[[Any], Any], limit: float, size: str) -> Constraint:
    words = f"Member must have {size} less than or equal to {limit}"
    return Constraint(lambda value: measure(value) <= limit, words)


def _at_least(measure: Callable[[Any], Any], limit: float, size: str) -> Constraint:
    words = f"Member must have {size} greater than or equal to {limit}"
    return Constraint(lambda value: measure(value) >= limit, words)


def _fits(pattern: str) -> Callable[[str], object]:
    # Compiled at first use: a model has hundreds of patterns, and a process meets a few.
    return lambda value: compiled(pattern).fullmatch(value)


@cache
def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern of Java's kind as one of Python's."""
    # Java lets a range begin after a class and takes the hyphen for itself: [\w-_].
    pattern = pattern.replace(r"\w-", r"\w\-")
    if r"\p{" not in pattern:
        return re.compile(pattern, re.ASCII)
    for name, characters in _UNICODE_CLASSES.items():
        pattern = pattern.replace(name, characters)
    return re.compile(pattern)
