"""Handlers: from a handler's name and a code folder to the callable it names, as AWS finds it."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any, Callable

from trivet_worker.faults import (
    BUILT_IN_MODULE_CONFLICT,
    HANDLER_NOT_FOUND,
    IMPORT_MODULE_ERROR,
    MALFORMED_HANDLER_NAME,
    USER_CODE_SYNTAX_ERROR,
    Fault,
)

_LIBRARY = os.path.dirname(os.__file__)
_LIBRARY_FOLDER = os.path.dirname(_LIBRARY)

Handler = Callable[[Any, Any], Any]

# Modules of the standard library that are loaded here, but not yet on AWS, when user code is
# imported. A user's file of such a name must win, as it does there.
_REPLACEABLE = frozenset(
    {
        "__future__",
        "_ctypes",
        "_datetime",
        "_random",
        "_socket",
        "_struct",
        "_uuid",
        "array",
        "base64",
        "binascii",
        "bisect",
        "calendar",
        "copy",
        "ctypes",
        "dataclasses",
        "datetime",
        "fcntl",
        "hashlib",
        "inspect",
        "locale",
        "platform",
        "queue",
        "random",
        "resource",
        "select",
        "selectors",
        "signal",
        "socket",
        "statistics",
        "struct",
        "sysconfig",
        "uuid",
    }
)


def search_path(task_root: str) -> list[str]:
    """sys.path of a function: its code, its layers, the standard library. Nothing of ours."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    # Of the paths that the interpreter began with: the archive, the library, its extensions.
    own = [path for path in sys.path if path.startswith((_LIBRARY, f"{_LIBRARY_FOLDER}/python"))]
    return [
        task_root,
        f"/opt/python/lib/{version}/site-packages",
        "/opt/python",
        "/var/runtime",
        *(path for path in own if "-packages" not in path),
    ]


def forget_replaced_modules(task_root: str) -> None:
    """Let the function's own modules take the place of those that were loaded to be quick."""
    for entry in os.listdir(task_root):
        name = entry.split(".", 1)[0]
        if name in _REPLACEABLE:
            sys.modules.pop(name, None)


def load(name: str) -> Handler:
    """The callable that `name` ("module.function", "folder/module.function") stands for.

    Raises Fault, or whatever the module raises while it is imported.
    """
    try:
        module_name, function_name = name.rsplit(".", 1)
    except ValueError as error:
        raise Fault(MALFORMED_HANDLER_NAME, f"Bad handler '{name}': {error}") from None
    if module_name.split(".")[0] in sys.builtin_module_names:
        message = f"Cannot use built-in module {module_name} as a handler module"
        raise Fault(BUILT_IN_MODULE_CONFLICT, message)
    try:
        module = importlib.import_module(module_name.replace("/", "."))
    except ImportError as error:
        message = f"Unable to import module '{module_name}': {error}"
        raise Fault(IMPORT_MODULE_ERROR, message) from None
    except SyntaxError as error:
        message = f"Syntax error in module '{module_name}': {error}"
        trace = [f'  File "{error.filename}" Line {error.lineno}\n    {error.text}']
        raise Fault(USER_CODE_SYNTAX_ERROR, message, trace) from None
    try:
        handler: Handler = getattr(module, function_name)
    except AttributeError:
        message = f"Handler '{function_name}' missing on module '{module_name}'"
        raise Fault(HANDLER_NOT_FOUND, message) from None
    return handler
