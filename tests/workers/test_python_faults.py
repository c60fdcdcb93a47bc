"""How a Python function fails, as its caller and its log see it. The expected texts are AWS's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.workers.conftest import Code, Run
from tests.workers.driver import Zygote

from trivet_worker import wire

_RAISES = """\
def inner():
    raise Exception("Handler fails")

def handler(event, context):
    inner()
"""

NO_BREAK_SPACE = "\u00a0"


def test_an_exception_has_awss_payload(zygote: Zygote, run: Run) -> None:
    environment = run(_RAISES)
    answer = environment.invoke(request_id="the-id")
    place = f'  File "{zygote.task_root}/index.py"'
    assert answer.kind == wire.ERROR
    assert list(answer.json) == ["errorMessage", "errorType", "requestId", "stackTrace"]
    assert answer.json == {
        "errorMessage": "Handler fails",
        "errorType": "Exception",
        "requestId": "the-id",
        "stackTrace": [
            f"{place}, line 5, in handler\n    inner()\n",
            f'{place}, line 2, in inner\n    raise Exception("Handler fails")\n',
        ],
    }
    indent = NO_BREAK_SPACE * 2
    assert environment.log() == "\r".join(
        [
            "[ERROR] Exception: Handler fails",
            "Traceback (most recent call last):",
            f'{indent}File "/var/task/index.py", line 5, in handler',
            f"{indent * 2}inner()",
            f'{indent}File "/var/task/index.py", line 2, in inner',
            f'{indent * 2}raise Exception("Handler fails")\n',
        ]
    )


@pytest.mark.parametrize(
    ("statement", "kind", "message"),
    [
        ("raise KeyError('k')", "KeyError", "'k'"),
        ("raise ValueError", "ValueError", ""),
        ("1 / 0", "ZeroDivisionError", "division by zero"),
        ("handler(event, context)", "RecursionError", "maximum recursion depth exceeded"),
        ("raise ValueError('\\ud800')", "ValueError", "\ud800"),
        ("raise Unprintable", "Unprintable", "<unprintable Unprintable object>"),
        ("import nothing_here", "ModuleNotFoundError", "No module named 'nothing_here'"),
        ("[][1]", "IndexError", "list index out of range"),
    ],
)
def test_any_exception_is_answered(run: Run, statement: str, kind: str, message: str) -> None:
    environment = run(
        "class Unprintable(Exception):\n"
        "    def __str__(self):\n        raise OSError\n"
        f"def handler(event, context):\n    {statement}\n"
    )
    for _ in range(2):
        answer = environment.invoke()
        assert answer.json["errorType"] == kind
        assert answer.json["errorMessage"].startswith(message)


@pytest.mark.parametrize(
    ("contents", "handler", "kind", "message", "trace"),
    [
        (
            {},
            "absent.handler",
            "Runtime.ImportModuleError",
            "Unable to import module 'absent': No module named 'absent'",
            [],
        ),
        (
            {"index.py": "import absent_too"},
            "index.handler",
            "Runtime.ImportModuleError",
            "Unable to import module 'index': No module named 'absent_too'",
            [],
        ),
        (
            {"index.py": ""},
            "index.handler",
            "Runtime.HandlerNotFound",
            "Handler 'handler' missing on module 'index'",
            [],
        ),
        (
            {"index.py": ""},
            "index",
            "Runtime.MalformedHandlerName",
            "Bad handler 'index': not enough values to unpack (expected 2, got 1)",
            [],
        ),
        (
            {"index.py": "x = 1\ndef handler(:\n"},
            "index.handler",
            "Runtime.UserCodeSyntaxError",
            "Syntax error in module 'index': invalid syntax (index.py, line 2)",
            ['  File "/var/task/index.py" Line 2\n    def handler(:\n'],
        ),
        (
            {"sys.py": ""},
            "sys.handler",
            "Runtime.BuiltInModuleConflict",
            "Cannot use built-in module sys as a handler module",
            [],
        ),
    ],
)
def test_what_cannot_be_loaded_is_said_in_awss_words(
    zygote: Zygote,
    files: Callable[[dict[str, str]], Path],
    contents: dict[str, str],
    handler: str,
    kind: str,
    message: str,
    trace: list[str],
) -> None:
    environment = zygote.spawn(files(contents))
    answer = environment.init(handler)
    assert answer.kind == wire.INIT_FAILED
    assert answer.json == {
        "errorMessage": message,
        "errorType": kind,
        "requestId": "",
        "stackTrace": trace,
    }
    assert environment.exit_status() == 1
    assert environment.log().startswith(f"[ERROR] {kind}: {message}\rTraceback")


def test_an_exception_at_import_has_its_own_type_and_the_importers_frames(
    zygote: Zygote, code: Code
) -> None:
    environment = zygote.spawn(code("raise LookupError('no settings')"))
    payload = environment.init().json
    assert (payload["errorType"], payload["errorMessage"]) == ("LookupError", "no settings")
    assert payload["requestId"] == ""
    assert 'importlib/__init__.py", line' in payload["stackTrace"][0]
    assert payload["stackTrace"][-1] == (
        "  File \"/var/task/index.py\", line 1, in <module>\n    raise LookupError('no settings')\n"
    )
    assert "trivet_worker" not in "".join(payload["stackTrace"])


@pytest.mark.parametrize(
    ("statement", "status", "log"),
    [
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit(-1)", 255, ""),
        ("sys.exit('why')", 1, "why\n"),
        ("raise SystemExit(4)", 4, ""),
        ("os._exit(0)", 0, ""),
        ("os._exit(7)", 7, ""),
        ("ctypes.string_at(0)", -11, ""),
        ("os.kill(os.getpid(), 9) or os._exit(5)", 5, ""),  # PID 1 is deaf to its own signals
        ("atexit.register(print, 'bye') and sys.exit(2)", 2, "bye\n"),
    ],
)
@pytest.mark.parametrize("is_initialising", [False, True], ids=["handler", "init"])
def test_a_process_that_ends_says_nothing_and_has_its_status(
    zygote: Zygote, code: Code, statement: str, status: int, log: str, is_initialising: bool
) -> None:
    imports = "import atexit, ctypes, os, sys\nprint('started')\n"
    body = statement if is_initialising else "pass"
    environment = zygote.spawn(
        code(f"{imports}{body}\ndef handler(event, context):\n    {statement}\n")
    )
    with pytest.raises((EOFError, ConnectionResetError)):
        print(environment.init(), environment.invoke())
    assert environment.exit_status() == status
    assert environment.log() == f"started\n{log}"


def test_a_keyboard_interrupt_ends_the_process_with_a_traceback(run: Run) -> None:
    environment = run("def handler(event, context): raise KeyboardInterrupt")
    with pytest.raises((EOFError, ConnectionResetError)):
        environment.invoke()
    assert environment.exit_status() == 1
    assert environment.log().endswith("KeyboardInterrupt\n")


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="this Python guards its C stack")
def test_a_stack_overflow_in_c_is_a_signal(run: Run) -> None:
    environment = run(
        "import sys\n"
        "class Nest:\n    def __repr__(self):\n        return repr(self)\n"
        "def handler(event, context):\n"
        "    sys.setrecursionlimit(10 ** 9)\n    repr(Nest())\n"
    )
    with pytest.raises((EOFError, ConnectionResetError)):
        environment.invoke()
    assert environment.exit_status() == -11


@pytest.mark.parametrize(
    "statement",
    [
        "os.closerange(0, 65536)",
        "os.close(3)",
        "os.dup2(os.open('/dev/null', os.O_RDWR), 3)",
        "os.dup2(os.open('/dev/zero', os.O_RDWR), 3)",
        "socket.socket(fileno=3).shutdown(socket.SHUT_RDWR)",
    ],
)
def test_breaking_the_channel_ends_only_the_environment(run: Run, statement: str) -> None:
    environment = run(f"import os, socket\ndef handler(event, context):\n    {statement}\n")
    neighbour = run("def handler(event, context): return 'fine'")
    with pytest.raises((EOFError, ConnectionResetError)):
        environment.invoke()
    assert environment.exit_status() == 1
    assert neighbour.invoke().json == "fine"


@pytest.mark.parametrize("kind", [wire.INIT, 0, 77, 255])
def test_a_second_init_or_an_unknown_frame_ends_the_environment(run: Run, kind: int) -> None:
    environment = run("def handler(event, context): return 1")
    environment.send(kind, b"{}")
    assert environment.exit_status() == 1


def test_an_event_before_init_ends_the_environment(zygote: Zygote, code: Code) -> None:
    environment = zygote.spawn(code(""))
    environment.send(wire.EVENT, b"")
    assert environment.exit_status() == 1


def test_the_end_of_the_channel_ends_the_environment(run: Run) -> None:
    environment = run("def handler(event, context): return 1")
    environment.channel.shutdown(2)
    assert environment.exit_status() == 1
