"""trivet coverage: how much of each AWS service is here, operation by operation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated

import typer

from trivet.cli.options import Json
from trivet.cli.screen import DIM, GREEN, aligned, command, paint
from trivet.errors import CallerError

OWN_SERVICE = "trivet"  # not one of AWS's


@dataclass(frozen=True, slots=True)
class Coverage:
    """A service by botocore's name, and the operations that its model has."""

    service: str
    here: tuple[str, ...]
    absent: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.here) + len(self.absent)


def coverage(
    service: Annotated[
        str | None, typer.Argument(help="Show its operations.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Count the operations that are here, per AWS service; with SERVICE list them.

    An operation that is absent is refused in words, never accepted and ignored.
    """
    covered = list(covered_services())
    if service is not None:
        covered = [each for each in covered if each.service == service]
        if not covered:
            message = f"no operation of '{service}' is here"
            raise CallerError(message, hint=f"{command()} coverage")
    if as_json:
        print(json.dumps({each.service: _record(each) for each in covered}))
    elif service is not None:
        print("\n".join(_listed(covered[0])))
    else:
        print("\n".join(_summary(covered)))


def covered_services() -> Iterator[Coverage]:
    """What the gateway serves of each service, against AWS's own model of it."""
    from trivet.aws.model import load
    from trivet.gateway.__main__ import TABLES

    for service, table in sorted(TABLES.items()):
        if service != OWN_SERVICE:
            names = sorted(load(service).operations)
            here = tuple(name for name in names if name in table)
            yield Coverage(service, here, tuple(name for name in names if name not in table))


def _record(covered: Coverage) -> dict[str, object]:
    return {
        "implemented": len(covered.here),
        "operations": covered.count,
        "here": covered.here,
        "absent": covered.absent,
    }


def _summary(covered: Iterable[Coverage]) -> Iterator[str]:
    rows = [(c.service, f"{len(c.here)} of {c.count}".rjust(10)) for c in covered]
    yield from aligned(rows)


def _listed(covered: Coverage) -> Iterator[str]:
    yield from (f"  {paint('✓', GREEN)} {name}" for name in covered.here)
    yield from (paint(f"  · {name}", DIM) for name in covered.absent)
    yield f"  {covered.service} {len(covered.here)} of {covered.count}"
