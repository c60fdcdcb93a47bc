"""Handlers: what the files of a package say about the runtime it is for, and what to call in it."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import PurePosixPath

from trivet.cli.exports import NODE_SUFFIXES, Exports, exports_of, functions_of
from trivet.cli.package import Package
from trivet.cli.screen import command
from trivet.errors import CallerError
from trivet.runtimes import CUSTOM_NAMES, NODE_NAMES

# Where a function is looked for, in this order.
_STEMS = ("index", "app", "lambda_function", "handler", "main")
USUAL_FILES = tuple(f"{stem}{suffix}" for stem in _STEMS for suffix in (*NODE_SUFFIXES, ".py"))
_PROGRAM = "bootstrap"
_USUAL_NAMES = ("handler", "lambda_handler", "main", "default")


@dataclass(frozen=True, slots=True)
class Family:
    """Runtimes that read the same files."""

    title: str
    prefix: str  # of their names
    suffixes: tuple[str, ...]
    first: str  # the runtime to add where there is none of them


NODE = Family("Node.js", "nodejs", NODE_SUFFIXES, "nodejs20.x")
PYTHON = Family("Python", "python", (".py",), "python3.12")
FAMILIES = (NODE, PYTHON)


_SUFFIXES = tuple(suffix for family in FAMILIES for suffix in family.suffixes)


@dataclass(frozen=True, slots=True)
class Choice:
    """What a package is to be run with."""

    runtime: str = ""
    handler: str = ""


def choose(package: Package, told: Choice, before: Choice, here: Sequence[str]) -> Choice:
    """As the user told; else as it was before, where that still fits; else as the files say.

    `here` are the platform's runtimes. Raises CallerError with the command that mends it.
    """
    is_untold = not (told.runtime or told.handler)
    if told.runtime in CUSTOM_NAMES or (is_untold and _PROGRAM in package.names):
        return _custom(package, told)
    if told.runtime:
        check_runtime(told.runtime, here)
    families = [f for f in FAMILIES if told.runtime in ("", *_names_of(f, here))] or [*FAMILIES]
    past = next((f for f in families if before.runtime.startswith(f.prefix)), None)
    handler = told.handler
    if not handler and past and file_of(package, before.handler, past):
        handler = before.handler
    handler = handler or _guess_handler(package, families)
    family = next((f for f in families if file_of(package, handler, f)), None)
    if family is None:
        raise _no_file_of(package, handler, families)
    runtime = told.runtime or (before.runtime if past is family else _first(family, here))
    if not _is_newer_python(runtime):
        _check_export(package, handler, family)
    return Choice(runtime, handler)


def _custom(package: Package, told: Choice) -> Choice:
    """A custom runtime: the package's own program, which may read the handler's name."""
    if _PROGRAM not in package.names:
        message = f"the runtime {told.runtime} runs the program '{_PROGRAM}', which is not there"
        raise CallerError(message, hint=f"put an executable file '{_PROGRAM}' beside the others")
    return Choice(told.runtime or CUSTOM_NAMES[0], told.handler or _PROGRAM)


def check_runtime(runtime: str, here: Sequence[str]) -> None:
    """Raise CallerError unless the platform runs `runtime`, with the command that mends it."""
    if runtime in here:
        return
    message = f"this platform has no runtime '{runtime}', but {', '.join(here)}"
    if runtime in NODE_NAMES or re.fullmatch(r"python3\.\d+", runtime):
        raise CallerError(message, hint=f"{command()} runtime add {runtime}")
    close = get_close_matches(runtime, here, 1, 0.3) or here[:1]
    raise CallerError(f"{message}; did you mean {close[0]}?", hint=f"{command()} runtime list")


def file_of(package: Package, handler: str, family: Family) -> str | None:
    """The file that `handler` means, if it is in the package."""
    return next((place for place in _places(handler, family) if place in package.names), None)


def _names_of(family: Family, here: Sequence[str]) -> list[str]:
    return [name for name in here if name.startswith(family.prefix)]


def _first(family: Family, here: Sequence[str]) -> str:
    """The first runtime of a family that the platform runs."""
    names = _names_of(family, here)
    if not names:
        message = f"this platform has no {family.title} runtime"
        raise CallerError(message, hint=f"{command()} runtime add {family.first}")
    return names[0]


def _is_newer_python(runtime: str) -> bool:
    """Whether our own interpreter may not understand what that one does."""
    match = re.fullmatch(r"python3\.(\d+)", runtime)
    return match is not None and int(match[1]) > sys.version_info.minor


def _guess_handler(package: Package, families: Sequence[Family]) -> str:
    """The handler that the files suggest: "index.handler"."""
    files = list(dict.fromkeys(_candidates(package, families)))
    for name in files:
        found = _usual(name, _exports(package, name).names)
        if found:
            return f"{_stem(name)}.{found}"
    for name in files:
        only = _functions(package, name)
        if len(only) == 1:
            return f"{_stem(name)}.{only[0]}"
    if files:
        raise _none_of(package, files[0], f"{files[0]} has no function named handler")
    raise _no_file(package, families)


def _check_export(package: Package, handler: str, family: Family) -> None:
    """Raise CallerError, listing the exports, if the file surely lacks what `handler` names."""
    name = file_of(package, handler, family)
    if name is None:
        raise _no_file_of(package, handler, [family])
    exports = _exports(package, name)
    if family is NODE:
        member = handler[len(_module_of(handler)) + 1 :].split(".")[0]
    else:
        member = handler.rpartition(".")[2]
    if exports.is_all and member not in exports.names:
        raise _none_of(package, name, f"{name} does not export '{member}'")


def _places(handler: str, family: Family) -> Sequence[str]:
    """Where a runtime of the family looks, in its order."""
    if family is PYTHON:
        module = handler.rpartition(".")[0].replace(".", "/")
        return (f"{module}/__init__.py", f"{module}.py")
    module = _module_of(handler)
    return (module, *(f"{module}{suffix}" for suffix in (".js", ".mjs", ".cjs")))


def _module_of(handler: str) -> str:
    """ "src/index" of "src/index.nested.handler"."""
    folder, slash, rest = handler.rpartition("/")
    return f"{folder}{slash}{rest.split('.')[0]}"


def _candidates(package: Package, families: Sequence[Family]) -> Iterator[str]:
    """Files at the package's root that may hold the handler, the likeliest first."""
    suffixes = tuple(suffix for family in families for suffix in family.suffixes)
    at_root = [name for name in package.names if "/" not in name and name.endswith(suffixes)]
    if len(at_root) == 1:
        yield at_root[0]
    main = _described_main(package)
    if main in package.names and main.endswith(suffixes):
        yield main
    yield from (name for name in USUAL_FILES if name in at_root)


def _described_main(package: Package) -> str:
    """The file that package.json calls the main one."""
    if "package.json" not in package.names:
        return ""
    try:
        main = json.loads(package.read("package.json"))["main"]
    except (ValueError, KeyError, TypeError):
        return ""
    return str(PurePosixPath(main)) if isinstance(main, str) else ""


def _exports(package: Package, name: str) -> Exports:
    try:
        return exports_of(name, package.read(name))
    except SyntaxError as error:
        message = f"{name}, line {error.lineno or 1}: {error.msg}"
        raise CallerError(message, hint=_checker(package, name)) from error


def _checker(package: Package, name: str) -> str:
    if package.source.suffix == ".zip":
        return f"unzip -p {shlex.quote(str(package.source))} {shlex.quote(name)}"
    return f"python3 -m py_compile {shlex.quote(_place(package, name))}"


def _usual(name: str, exports: Sequence[str]) -> str | None:
    return next((usual for usual in _USUAL_NAMES if usual in exports), None)


def _functions(package: Package, name: str) -> Sequence[str]:
    if name.endswith(".py"):
        return functions_of(package.read(name))
    return _exports(package, name).names


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _none_of(package: Package, name: str, message: str) -> CallerError:
    exports = _exports(package, name).names
    names = _functions(package, name) or exports
    if not names:
        first = _FIRST_LINE[name.rpartition(".")[2]]
        hint = f"echo {shlex.quote(first)} >> {shlex.quote(_place(package, name))}"
        return CallerError(f"{message}: it exports nothing", hint=hint)
    best = _usual(name, exports) or names[0]
    hint = _deploy(package, f"{_stem(name)}.{best}")
    return CallerError(f"{message}: it has {', '.join(names[:12])}", hint=hint)


_FIRST_LINE = {
    "py": "handler = lambda event, context: event",
    "js": "exports.handler = async (event) => event;",
    "cjs": "exports.handler = async (event) => event;",
    "mjs": "export const handler = async (event) => event;",
}


def _place(package: Package, name: str) -> str:
    source = package.source
    return str(source if source.name == name else source / name)


def _deploy(package: Package, handler: str) -> str:
    return f"{command()} deploy {shlex.quote(str(package.source))} --handler {handler}"


def _no_file_of(package: Package, handler: str, families: Sequence[Family]) -> CallerError:
    places = [place for family in families for place in _places(handler, family)]
    files = ", ".join(place for place in dict.fromkeys(places) if place.endswith(_SUFFIXES))
    message = f"the handler '{handler}' means one of {files}; {package.source} has none of them"
    try:
        hint = _deploy(package, _guess_handler(package, families))
    except CallerError as error:
        hint = error.hint
    return CallerError(message, hint=hint)


def _no_file(package: Package, families: Sequence[Family]) -> CallerError:
    scripts = [name for name in package.names if name.endswith((".ts", ".tsx", ".mts"))]
    if scripts:
        message = f"{scripts[0]} has to be compiled to JavaScript first"
        build = "npx esbuild --bundle --platform=node --format=esm --outfile=index.mjs"
        return CallerError(message, hint=f"{build} {shlex.quote(_place(package, scripts[0]))}")
    titles = " or ".join(family.title for family in families)
    others = [family for family in FAMILIES if family not in families]
    if others and (files := list(_candidates(package, others))):
        message = f"{files[0]} is {others[0].title}, and {titles} is asked for"
        hint = f"{command()} deploy {shlex.quote(str(package.source))}"
        return CallerError(message, hint=hint)
    message = f"{package.source} has no {titles} file at its top that looks like a function"
    suffixes = tuple(suffix for family in families for suffix in family.suffixes)
    deep = [n for n in package.names if n.endswith(suffixes) and "node_modules/" not in n]
    if deep:
        return CallerError(message, hint=_deploy(package, f"{_stem(deep[0])}.handler"))
    return CallerError(message, hint=f"{command()} deploy --help")
