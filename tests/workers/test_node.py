"""Node functions in cells: answers, failures and log lines. The expected texts are AWS's."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.workers import driver
from tests.workers.driver import CLONE_IN_TMP, Environment, Zygote

from trivet_worker import wire

Files = Callable[[dict[str, str]], Path]
RunNode = Callable[..., Environment]

_ISO = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"

_TUTORIAL = """export const handler = async (event) => {
const name = event.queryStringParameters?.name || "World";
return {
statusCode: 200,
headers: { "Content-Type": "application/json" },
body: JSON.stringify({ message: `Hello, ${name}!` })
};
};
"""


@pytest.fixture
def cells(node_zygote: Zygote) -> Iterator[Callable[[], Environment]]:
    started: list[Environment] = []

    def start() -> Environment:
        started.append(node_zygote.spawn(None))
        return started[-1]

    yield start
    for cell in started:
        if not driver.has_ended(cell.pidfd, within_s=0):
            cell.kill()


@pytest.fixture
def run_node(node_zygote: Zygote, cells: Callable[[], Environment], files: Files) -> RunNode:
    """Fills a cell with the given index.mjs and initialises it."""

    def start(source: str, handler: str = "index.handler") -> Environment:
        cell = cells()
        node_zygote.fill(cell, files({"index.mjs": source}))
        assert cell.init(handler).kind == wire.INITIALISED
        return cell

    return start


def test_the_tutorials_function(run_node: RunNode) -> None:
    environment = run_node(_TUTORIAL)
    answer = environment.invoke({"queryStringParameters": {"name": "Alice"}})
    assert answer.kind == wire.RESULT
    assert json.loads(answer.json["body"]) == {"message": "Hello, Alice!"}
    assert json.loads(environment.invoke({}).json["body"]) == {"message": "Hello, World!"}
    assert 20_000 < answer.peak_kib < 200_000
    assert environment.log() == ""


def test_what_a_cell_rehearsed_leaves_no_trace(
    node_zygote: Zygote, cells: Callable[[], Environment], files: Files
) -> None:
    source = (
        "console.log('loading');\n"
        "exports.handler = async () => [Object.keys(require.cache), Object.keys(process.env)];"
    )
    cell = cells()
    folder = files({"index.js": source})
    node_zygote.fill(cell, folder)
    assert cell.init().kind == wire.INITIALISED
    root = node_zygote.task_root or str(folder)
    assert cell.invoke().json == [[f"{root}/index.js"], ["LANG", "TZ"]]
    assert re.fullmatch(_ISO + "\tundefined\tINFO\tloading\n", cell.log())


def test_a_cell_is_empty_until_it_is_filled_and_read_only_after(
    node_zygote: Zygote, cells: Callable[[], Environment], files: Files
) -> None:
    source = """
import fs from "node:fs";
const seen = ["/var/task", "/proc/self/fd", "/tmp"].map((folder) => fs.readdirSync(folder));
export const handler = async () => {
  let code;
  try { fs.writeFileSync("/var/task/new", ""); } catch (error) { code = error.code; }
  return { seen: [...seen, process.cwd(), process.pid], code, uid: process.getuid() };
};
"""
    cell = cells()
    namespace = Path(f"/proc/{cell.pid}/root/var/task")
    assert [*namespace.iterdir()] == []
    node_zygote.fill(cell, files({"index.mjs": source}))
    cell.init()
    seen = cell.invoke().json
    assert seen["seen"][0] == ["index.mjs"]
    assert {*"0123"} <= {*seen["seen"][1]}
    assert seen["seen"][2:] == [CLONE_IN_TMP, "/var/task", 1]
    assert seen["code"] == "EROFS"
    assert seen["uid"] != 0


def test_the_environment_is_exactly_what_init_says(
    node_zygote: Zygote, cells: Callable[[], Environment], files: Files
) -> None:
    cell = cells()
    source = """
import fs from "node:fs";
export const handler = async () => [
  process.env, fs.readFileSync("/proc/self/environ", "utf8"), new Date(0).getHours(),
];
"""
    node_zygote.fill(cell, files({"index.mjs": source}))
    cell.init(variables={"GREETING": "hello wörld", "TZ": "Asia/Tokyo"})
    variables, inherited, hours = cell.invoke().json
    assert variables == {"LANG": "en_US.UTF-8", "TZ": "Asia/Tokyo", "GREETING": "hello wörld"}
    assert inherited == "LANG=en_US.UTF-8\0PATH=/usr/local/bin:/usr/bin:/bin\0"
    assert hours == 9


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("async () => 1", "1"),
        ("async () => {}", "null"),
        ("async () => undefined", "null"),
        ("() => Promise.resolve('later')", '"later"'),
        ("() => ({ then: (f) => f([1]) })", "[1]"),
        ("() => 'plain values do not count'", "null"),
        ("() => {}", "null"),
        ("(e, c, callback) => callback(null, { a: 1 })", '{"a":1}'),
        ("(e, c, callback) => { callback(null, 1); callback(null, 2); }", "1"),
        ("(e, c, callback) => setTimeout(callback, 5, null, 'timer')", '"timer"'),
        (
            "(e, c, callback) => { setTimeout(() => { e.x = 1; }, 5); callback(null, e); }",
            '{"x":1}',
        ),
        (
            "(e, c, callback) => { c.callbackWaitsForEmptyEventLoop = false;"
            " setTimeout(() => {}, 1e6); callback(null, 'soon'); }",
            '"soon"',
        ),
        ("(e, c) => c.succeed('s')", '"s"'),
        ("(e, c) => c.done(null, 'd')", '"d"'),
        ("async () => new Promise(() => {})", "null"),  # the event loop is empty
        (
            "async () => ({ d: new Date(0), u: undefined, n: NaN })",
            '{"d":"1970-01-01T00:00:00.000Z","n":null}',
        ),
        ("async () => 'é\\u2028'", '"é\u2028"'),
        ("async () => () => 1", "null"),
    ],
)
def test_every_way_to_answer(run_node: RunNode, body: str, expected: str) -> None:
    environment = run_node(f"export const handler = {body};")
    for _ in range(2):
        answer = environment.invoke({})
        assert (answer.kind, answer.body.decode()) == (wire.RESULT, expected)


def test_an_error_has_awss_payload_and_line(run_node: RunNode) -> None:
    environment = run_node(
        "export const handler = async () => {\n        throw new TypeError('no good');\n};"
    )
    answer = environment.invoke(request_id="the-id")
    assert answer.kind == wire.ERROR
    assert list(answer.json) == ["errorType", "errorMessage", "trace"]
    assert (answer.json["errorType"], answer.json["errorMessage"]) == ("TypeError", "no good")
    assert answer.json["trace"][:2] == [
        "TypeError: no good",
        "    at Runtime.handler (file:///var/task/index.mjs:2:15)",
    ]
    assert not re.search("bootstrap|trivet", answer.body.decode())
    line = environment.log()
    head = re.match(rf"{_ISO}\tthe-id\tERROR\tInvoke Error \t(.*)\n$", line)
    assert head is not None, line
    logged = json.loads(head[1])
    assert list(logged) == ["errorType", "errorMessage", "stack"]
    assert logged["stack"] == answer.json["trace"]


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("async () => { throw 'text'; }", "string", "text"),
        ("async () => { throw { a: 1 }; }", "object", "[object Object]"),
        ("() => { throw new RangeError('sync'); }", "RangeError", "sync"),
        ("(e, c, callback) => callback(new Error('called'))", "Error", "called"),
        ("(e, c, callback) => callback('text')", "string", "text"),
        ("(e, c) => c.fail(new Error('failed'))", "Error", "failed"),
        ("(e, c) => c.fail()", "string", "handled"),
        ("(e, c) => c.done(new Error('done'))", "Error", "done"),
        ("async () => 10n", "Error", "Unable to stringify response body"),
        (
            "async () => { const a = []; a.push(a); return a; }",
            "Error",
            "Unable to stringify response body",
        ),
        ("async () => { throw Object.assign(new Error('own'), { name: 'Own' }); }", "Own", "own"),
    ],
)
def test_every_way_to_fail(run_node: RunNode, body: str, kind: str, message: str) -> None:
    environment = run_node(f"export const handler = {body};")
    for _ in range(2):
        answer = environment.invoke({})
        assert answer.kind == wire.ERROR
        assert (answer.json["errorType"], answer.json["errorMessage"]) == (kind, message)


def test_an_event_that_is_no_json_is_a_syntax_error(run_node: RunNode) -> None:
    assert run_node(_TUTORIAL).invoke_raw(b"nope").json["errorType"] == "SyntaxError"


@pytest.mark.parametrize(
    ("body", "status", "kind", "message"),
    [
        (
            "async () => { Promise.reject(new Error('lost')); await new Promise(() => {}); }",
            128,
            "Runtime.UnhandledPromiseRejection",
            "Error: lost",
        ),
        (
            "() => { setTimeout(() => { throw new TypeError('late'); }, 1); }",
            129,
            "TypeError",
            "late",
        ),
    ],
)
def test_an_error_that_nobody_catches_is_answered_and_ends_the_process(
    run_node: RunNode, body: str, status: int, kind: str, message: str
) -> None:
    environment = run_node(f"export const handler = {body};")
    answer = environment.invoke()
    assert answer.kind == wire.ERROR
    assert (answer.json["errorType"], answer.json["errorMessage"]) == (kind, message)
    assert environment.exit_status() == status


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("process.exit(0)", 0),
        ("process.exit(7)", 7),
        ("process.abort()", -signal.SIGSEGV),  # PID 1 is deaf to SIGABRT
        ("require('node:fs').closeSync(3)", 1),
    ],
)
def test_a_process_that_ends_says_nothing_and_has_its_status(
    run_node: RunNode, body: str, status: int
) -> None:
    environment = run_node(
        "import { createRequire } from 'node:module';\n"
        "const require = createRequire('/var/task/');\n"
        f"export const handler = async () => {{ console.log('going'); {body}; }};"
    )
    with pytest.raises((EOFError, ConnectionResetError)):
        environment.invoke(request_id="the-id")
    assert environment.exit_status() == status
    assert re.match(rf"{_ISO}\tthe-id\tINFO\tgoing\n", environment.log())


@pytest.mark.parametrize(
    ("contents", "handler", "kind", "message"),
    [
        (
            {"index.mjs": ""},
            "index.handler",
            "HandlerNotFound",
            "index.handler is undefined or not exported",
        ),
        (
            {"index.mjs": "export const handler = 1;"},
            "index.handler",
            "HandlerNotFound",
            "index.handler is not a function",
        ),
        ({"index.mjs": ""}, "index", "MalformedHandlerName", "Bad handler"),
        (
            {"index.mjs": ""},
            "../index.handler",
            "MalformedHandlerName",
            "'../index.handler' is not a valid handler name. "
            "Use absolute paths when specifying root directories in handler names.",
        ),
        (
            {},
            "absent.handler",
            "ImportModuleError",
            "Error: Cannot find module 'absent'\nRequire stack:\n- /var/runtime/index.mjs",
        ),
        (
            {"index.js": "require('absent-too')"},
            "index.handler",
            "ImportModuleError",
            "Error: Cannot find module 'absent-too'\nRequire stack:\n- /var/task/index.js\n"
            "- /var/runtime/index.mjs",
        ),
        (
            {"index.mjs": "export const handler = ;"},
            "index.handler",
            "UserCodeSyntaxError",
            "SyntaxError: Unexpected token ';'",
        ),
    ],
)
def test_what_cannot_be_loaded_is_said_in_awss_words(
    node_zygote: Zygote,
    cells: Callable[[], Environment],
    files: Files,
    contents: dict[str, str],
    handler: str,
    kind: str,
    message: str,
) -> None:
    cell = cells()
    node_zygote.fill(cell, files(contents))
    answer = cell.init(handler)
    assert answer.kind == wire.INIT_FAILED
    assert answer.json["errorType"] == f"Runtime.{kind}"
    assert answer.json["errorMessage"] == message
    assert answer.json["trace"][0].startswith(f"Runtime.{kind}: {message.splitlines()[0]}")
    assert cell.exit_status() == 129
    assert re.match(rf"{_ISO}\tundefined\tERROR\tUncaught Exception \t{{", cell.log())


@pytest.mark.parametrize(
    ("source", "status", "kind", "message"),
    [
        ("throw new Error('at load');", 129, "Error", "at load"),
        ("await Promise.reject(new TypeError('awaited'));", 129, "TypeError", "awaited"),
        (
            "Promise.reject(new Error('lost')); await new Promise((r) => setTimeout(r, 1000));",
            128,
            "Runtime.UnhandledPromiseRejection",
            "Error: lost",
        ),
    ],
)
def test_an_error_while_loading(
    node_zygote: Zygote,
    cells: Callable[[], Environment],
    files: Files,
    source: str,
    status: int,
    kind: str,
    message: str,
) -> None:
    cell = cells()
    node_zygote.fill(cell, files({"index.mjs": source}))
    answer = cell.init()
    assert answer.kind == wire.INIT_FAILED
    assert (answer.json["errorType"], answer.json["errorMessage"]) == (kind, message)
    assert cell.exit_status() == status


@pytest.mark.parametrize(
    ("contents", "handler"),
    [
        ({"index.js": "exports.handler = async () => 'here';"}, "index.handler"),
        ({"index.cjs": "exports.handler = async () => 'here';"}, "index.handler"),
        (
            {
                "index.js": "export const handler = async () => 'here';",
                "package.json": '{"type": "module"}',
            },
            "index.handler",
        ),
        ({"src/app.mjs": "export const handler = async () => 'here';"}, "src/app.handler"),
        ({"a.mjs": "export const b = { c: async () => 'here' };"}, "a.b.c"),
        (
            {
                "index.mjs": "import { x } from './near.mjs'; export const handler = () => x;",
                "near.mjs": "export const x = Promise.resolve('here');",
            },
            "index.handler",
        ),
        (
            {
                "index.mjs": "import x from 'dep'; export const handler = async () => x;",
                "node_modules/dep/index.js": "module.exports = 'here';",
            },
            "index.handler",
        ),
        ({"node_modules/dep/index.js": "exports.handler = async () => 'here';"}, "dep.handler"),
        ({"index.mjs": "await 1; export const handler = async () => 'here';"}, "index.handler"),
    ],
)
def test_every_kind_of_module(
    node_zygote: Zygote,
    cells: Callable[[], Environment],
    files: Files,
    contents: dict[str, str],
    handler: str,
) -> None:
    cell = cells()
    node_zygote.fill(cell, files(contents))
    answer = cell.init(handler)
    assert answer.kind == wire.INITIALISED, answer.body
    assert cell.invoke().json == "here"


def test_the_context_has_awss_fields(run_node: RunNode) -> None:
    environment = run_node(
        "export const handler = async (event, context) => "
        "[context, context.getRemainingTimeInMillis(), process.env._X_AMZN_TRACE_ID];"
    )
    given = json.dumps({"custom": {"a": 1}}).encode()
    answer = environment.invoke(
        request_id="the-id", remaining_ms=60_000, client_context=given, trace_id="Root=1-abc"
    )
    fields, remaining_ms, trace_id = answer.json
    assert fields == {
        "callbackWaitsForEmptyEventLoop": True,
        "functionVersion": "$LATEST",
        "functionName": "hello",
        "memoryLimitInMB": "128",
        "logGroupName": "/aws/lambda/hello",
        "logStreamName": "2026/01/01/[$LATEST]0123456789abcdef0123456789abcdef",
        "clientContext": {"custom": {"a": 1}},
        "invokedFunctionArn": "arn:aws:lambda:us-east-1:123456789012:function:hello",
        "awsRequestId": "the-id",
    }
    assert 0 < remaining_ms <= 60_000
    assert trace_id == "Root=1-abc"
    assert environment.invoke().json[2] is None


def test_console_lines_have_awss_form(run_node: RunNode) -> None:
    environment = run_node("""
console.log("loading");
export const handler = async () => {
  console.log("two\\nlines", { a: 1 }, 3);
  console.info("%s of %d", "one", 2);
  console.warn("warned");
  console.error("wrong", [1]);
  console.debug("debugged");
  process.stdout.write("raw ");
  process.stderr.write("error\\n");
};
""")
    environment.invoke(request_id="the-id")
    assert re.fullmatch(
        rf"{_ISO}\tundefined\tINFO\tloading\n"
        rf"{_ISO}\tthe-id\tINFO\ttwo\rlines {{ a: 1 }} 3\n"
        rf"{_ISO}\tthe-id\tINFO\tone of 2\n"
        rf"{_ISO}\tthe-id\tWARN\twarned\n"
        rf"{_ISO}\tthe-id\tERROR\twrong \[ 1 \]\n"
        rf"{_ISO}\tthe-id\tDEBUG\tdebugged\n"
        "raw error\n",
        environment.log(),
    )


def test_the_largest_event_and_result_pass(run_node: RunNode) -> None:
    environment = run_node("export const handler = async (event) => event + 'x'.repeat(100);")
    payload = json.dumps("y" * (wire.MAX_REQUEST_BYTES - 2)).encode()
    answer = environment.invoke_raw(payload)
    assert (answer.kind, len(answer.body)) == (wire.RESULT, wire.MAX_RESPONSE_BYTES)
    assert environment.invoke("small").json.startswith("small")


def test_one_byte_more_is_refused_in_awss_words(run_node: RunNode) -> None:
    environment = run_node("export const handler = async (size) => 'x'.repeat(size);")
    answer = environment.invoke(wire.MAX_RESPONSE_BYTES - 1)
    assert answer.kind == wire.ERROR
    assert answer.json == {
        "errorMessage": "Response payload size exceeded maximum allowed payload size "
        "(6291556 bytes).",
        "errorType": "Function.ResponseSizeTooLarge",
    }
    assert environment.invoke(1).json == "x"


def test_events_that_wait_in_the_socket_are_run_one_after_the_other(run_node: RunNode) -> None:
    environment = run_node("export const handler = async (n, c) => [n, c.awsRequestId];")
    attempts = [
        environment.send(wire.EVENT, driver.event_body(b"%d" % n, request_id=f"id-{n}"))
        for n in range(50)
    ]
    answers = [environment.receive() for _ in attempts]
    assert [answer.attempt for answer in answers] == attempts
    assert [answer.json for answer in answers] == [[n, f"id-{n}"] for n in range(50)]


@pytest.mark.parametrize("kind", [wire.INIT, 0, 77])
def test_a_second_init_or_an_unknown_frame_ends_the_environment(
    run_node: RunNode, kind: int
) -> None:
    environment = run_node(_TUTORIAL)
    environment.send(kind, b"{}")
    assert environment.exit_status() == 1


def test_a_cell_ends_with_its_channel(cells: Callable[[], Environment]) -> None:
    cell = cells()
    cell.channel.shutdown(2)
    assert cell.exit_status() == 1


def test_a_cell_may_be_spawned_with_its_code(node_zygote: Zygote, files: Files) -> None:
    environment = node_zygote.spawn(files({"index.mjs": _TUTORIAL}))
    assert environment.init().kind == wire.INITIALISED
    assert environment.invoke({}).json["statusCode"] == 200
    assert environment.kill() == -signal.SIGKILL


def test_filling_a_cell_that_is_gone_is_refused(node_zygote: Zygote, files: Files) -> None:
    cell = node_zygote.spawn(None)
    assert cell.kill() == -signal.SIGKILL
    with pytest.raises(AssertionError):
        node_zygote.fill(cell, files({"index.mjs": ""}))


def test_an_endless_loop_is_killed(run_node: RunNode) -> None:
    environment = run_node("export const handler = async () => { for (;;); };")
    environment.send(wire.EVENT, driver.event_body(b"{}"))
    assert environment.kill() == -signal.SIGKILL
