"""The arrows between the packages, and within the platform, as their imports draw them."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tests.house.tree import Module, dependencies, modules

import trivet

STDLIB = sys.stdlib_module_names

# Of the project's own modules, what each part may import; the longest matching part counts.
# A module is allowed with everything below it.
OWN = {
    "trivet_worker": {"trivet_worker"},
    "trivet_adapters": {"trivet", "trivet_adapters"},
    "trivet": {"trivet", "trivet_worker.wire"},
    "trivet.core": {"trivet.core", "trivet.errors", "trivet_worker.wire"},
    "trivet.errors": set(),
    "trivet.settings": {"trivet.core", "trivet.errors", "trivet_worker.wire"},
    "trivet.bus": {"trivet.bus", "trivet.core", "trivet.errors", "trivet.settings"},
    "trivet.provisioner": {"trivet.core.egress", "trivet.provisioner"},
    "trivet.launcher": {
        "trivet.core",
        "trivet.errors",
        "trivet.launcher",
        "trivet.runtimes",
        "trivet.settings",
        "trivet_worker.wire",
    },
}

# Parts that import nothing from outside: privileged, pure, or run by any interpreter.
STDLIB_ONLY = (
    "trivet_worker",
    "trivet.core",
    "trivet.errors",
    "trivet.settings",
    "trivet.launcher",
)


def _is_below(name: str, part: str) -> bool:
    return name == part or name.startswith(f"{part}.")


def _rule(module: Module) -> set[str]:
    return OWN[max((part for part in OWN if _is_below(module.name, part)), key=len)]


def _is_own(name: str) -> bool:
    return name.split(".")[0] in ("trivet", "trivet_worker", "trivet_adapters")


def test_every_import_follows_an_arrow() -> None:
    assert [f"{m.place} imports {name}" for m in modules() for name in _beyond_its_layer(m)] == []


def _beyond_its_layer(module: Module) -> Iterator[str]:
    allowed = _rule(module)
    for name, member in module.imports():
        whole = f"{name}.{member}" if member else name
        if _is_own(name) and not any(_is_below(n, p) for n in (name, whole) for p in allowed):
            yield whole


def test_every_package_from_outside_is_declared() -> None:
    """And none is imported by the parts that are privileged, pure, or run by any interpreter."""
    assert [f"{m.place} imports {name}" for m in modules() for name in _undeclared(m)] == []


def _undeclared(module: Module) -> set[str]:
    is_bare = any(_is_below(module.name, part) for part in STDLIB_ONLY)
    outside = {name.split(".")[0] for name, _ in module.imports() if not _is_own(name)}
    return outside - STDLIB - (frozenset() if is_bare else dependencies())


def test_adapters_import_only_the_names_that_trivet_exports() -> None:
    imports = {
        (name, member)
        for module in modules()
        if _is_below(module.name, "trivet_adapters")
        for name, member in module.imports()
        if _is_below(name, "trivet")
    }
    assert imports <= {("trivet", name) for name in trivet.__all__}


def test_only_the_command_line_imports_the_command_line() -> None:
    importers = {
        module.place
        for module in modules()
        if any(_is_below(name, "trivet.cli") for name, _ in module.imports())
    }
    assert {place for place in importers if not place.startswith("platform/trivet/cli/")} == set()
