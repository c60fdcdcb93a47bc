"""ARNs and names: how AWS writes which function is meant."""

from __future__ import annotations

import re
from dataclasses import dataclass

LATEST = "$LATEST"


@dataclass(frozen=True, slots=True)
class Place:
    """The account and region that this platform says it is."""

    region: str
    account: str

    def function_arn(self, name: str, qualifier: str | None = None) -> str:
        arn = f"arn:aws:lambda:{self.region}:{self.account}:function:{name}"
        return arn if qualifier is None else f"{arn}:{qualifier}"


@dataclass(frozen=True, slots=True)
class FunctionRef:
    """A function as a caller named it: name, and the qualifier if one was given."""

    name: str
    qualifier: str | None = None
    region: str | None = None
    account: str | None = None


# The pattern that AWS's own model gives for FunctionName, with the four forms it accepts:
# NAME, NAME:QUALIFIER, ACCOUNT:function:NAME[:QUALIFIER] and a whole ARN.
_REF = re.compile(
    r"(?:arn:(?:aws[a-zA-Z-]*):lambda:(?P<region>[a-z]{2}(?:-[a-z]+){1,4}-\d):)?"
    r"(?:(?P<account>\d{12}):)?(?:function:)?"
    r"(?P<name>[a-zA-Z0-9-_]{1,64})(?::(?P<qualifier>\$LATEST(?:\.PUBLISHED)?|[a-zA-Z0-9-_]+))?\Z"
)


def parse_function_ref(text: str) -> FunctionRef | None:
    """The function that `text` names, or None where AWS would call the name malformed."""
    match = _REF.match(text)
    if match is None:
        return None
    return FunctionRef(match["name"], match["qualifier"], match["region"], match["account"])
