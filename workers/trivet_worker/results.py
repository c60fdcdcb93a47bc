"""Results: what a handler returns, as the JSON that AWS's Python runtime makes of it.

That runtime encodes with simplejson, whose habits users rely on: named tuples are objects, bytes
are text, and decimals keep their digits. The standard library's encoder does the same here after
a little preparation, which a result made of plain values does not need.
"""

from __future__ import annotations

import contextlib
import decimal
import json
import marshal
import math
import os
import re
import sys
from typing import Any

from trivet_worker.faults import MARSHAL_ERROR, Fault


def to_json(value: Any) -> bytes:
    """`value` as JSON. Bytes are taken to be an answer already. Raises Fault."""
    if isinstance(value, bytes):
        return value
    try:
        return _text(value).encode()
    except Exception as error:
        raise Fault(MARSHAL_ERROR, f"Unable to marshal response: {error}") from None


class _Encoder(json.JSONEncoder):
    """Encodes what the plain encoder cannot; decimals through a mark that is then replaced."""

    def __init__(self) -> None:
        # AWS's runtimes write characters as they are from Python 3.12 on.
        super().__init__(ensure_ascii=sys.version_info < (3, 12))
        self.literals: list[str] = []
        self.mark = ""

    def default(self, o: Any) -> Any:
        if isinstance(o, bytes):
            return o.decode()
        if isinstance(o, decimal.Decimal):
            return math.nan if o.is_nan() else self._literal(str(o))
        if callable(getattr(o, "_asdict", None)):
            return o._asdict()
        return super().default(o)

    def _literal(self, text: str) -> str:
        if not self.mark:
            self.mark = os.urandom(16).hex()  # a string of the user's never looks like it
        self.literals.append(text)
        return f"{self.mark}{len(self.literals) - 1}"

    def encode_all(self, value: Any) -> str:
        text = self.encode(value)
        if not self.literals:
            return text
        pattern = f'"{self.mark}([0-9]+)"'
        return re.sub(pattern, lambda match: self.literals[int(match[1])], text)


# For plain values only: `default` would leave literals behind in it.
_encode_plain = json.JSONEncoder(ensure_ascii=sys.version_info < (3, 12)).encode


def _text(value: Any) -> str:
    try:
        # Marshal knows only the built-in types themselves, so it tells fast whether there is
        # anything that the plain encoder would treat in another way than simplejson.
        marshal.dumps(value)
        return _encode_plain(value)
    except (ValueError, TypeError):
        pass
    with contextlib.suppress(RecursionError):  # the encoder has the words for it
        value = _unfolded(value)
    return _Encoder().encode_all(value)


def _unfolded(value: Any) -> Any:
    """`value` with named tuples as objects and the keys of objects as text."""
    if isinstance(value, (list, tuple, dict)) and callable(getattr(value, "_asdict", None)):
        value = value._asdict()  # type: ignore[union-attr]  # the line above asked for it
    if isinstance(value, dict):
        return {_key(key): _unfolded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_unfolded(item) for item in value]
    return value


def _key(key: Any) -> Any:
    if isinstance(key, bytes):
        return key.decode()
    if key is not None and not isinstance(key, (str, int, float)):
        kind = type(key).__name__
        raise TypeError(f"keys must be str, int, float, bool or None, not {kind}")
    return key
