"""What a Python function finds around itself: variables, context, log, paths."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.workers.conftest import Code, Run
from tests.workers.driver import DEADLINE_S, Environment, Zygote

from trivet_worker import wire

_ISO = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def test_the_environment_is_exactly_what_init_says(zygote: Zygote, code: Code) -> None:
    environment = zygote.spawn(
        code(
            "import os, time\n"
            "def handler(event, context):\n"
            "    return [dict(os.environ), open('/proc/self/environ').read().strip('\\0'),\n"
            "            time.tzname[0], os.popen('echo $GREETING').read()]\n"
        )
    )
    environment.init(variables={"GREETING": "hello wörld", "TZ": "Asia/Tokyo"})
    variables, inherited, zone, seen_by_child = environment.invoke().json
    assert variables == {"LANG": "en_US.UTF-8", "TZ": "Asia/Tokyo", "GREETING": "hello wörld"}
    assert inherited == ""  # what the launcher had is not even in memory
    assert zone == "JST"
    assert seen_by_child == "hello wörld\n"


def test_the_context_has_awss_fields(run: Run) -> None:
    environment = run(
        "def handler(event, context):\n"
        "    fields = {k: v for k, v in vars(context).items() if not k.startswith('_')}\n"
        "    fields['identity'] = repr(fields['identity'])\n"
        "    return fields, context.get_remaining_time_in_millis(), repr(context)\n"
    )
    arn = "arn:aws:lambda:us-east-1:123456789012:function:hello:live"
    answer = environment.invoke(request_id="the-id", arn=arn, remaining_ms=60_000)
    fields, remaining_ms, text = answer.json
    assert fields == {
        "aws_request_id": "the-id",
        "log_group_name": "/aws/lambda/hello",
        "log_stream_name": "2026/01/01/[$LATEST]0123456789abcdef0123456789abcdef",
        "function_name": "hello",
        "memory_limit_in_mb": "128",
        "function_version": "$LATEST",
        "invoked_function_arn": arn,
        "client_context": None,
        "identity": "CognitoIdentity([cognito_identity_id=None,cognito_identity_pool_id=None])",
        "tenant_id": None,
    }
    assert 0 < remaining_ms <= 60_000
    assert text.startswith("LambdaContext([aws_request_id=the-id,log_group_name=/aws/lambda/hello,")


def test_no_time_remains_after_the_deadline(run: Run) -> None:
    environment = run("def handler(event, context): return context.get_remaining_time_in_millis()")
    assert environment.invoke(remaining_ms=-5_000).json == 0


def test_the_client_context_is_an_object(run: Run) -> None:
    environment = run(
        "def handler(event, context):\n"
        "    given = context.client_context\n"
        "    client = given.client\n"
        "    return [given.custom, given.env, client.app_title, client.installation_id,\n"
        "            context.w3c()]\n"
    )
    given = {
        "custom": {"a": 1},
        "client": {"app_title": "App"},
        "w3c": {"traceparent": "00-1", "other": "x"},
    }
    answer = environment.invoke(client_context=json.dumps(given).encode())
    assert answer.json == [{"a": 1}, None, "App", None, {"traceparent": "00-1"}]
    refused = environment.invoke(client_context=b"{").json
    assert refused["errorType"] == "Runtime.LambdaContextUnmarshalError"
    assert refused["errorMessage"].startswith("Unable to parse Client Context JSON: ")


def test_the_trace_id_is_that_of_the_invocation(run: Run) -> None:
    environment = run(
        "import os\ndef handler(event, context): return os.environ.get('_X_AMZN_TRACE_ID')"
    )
    assert environment.invoke(trace_id="Root=1-abc;Sampled=0").json == "Root=1-abc;Sampled=0"
    assert environment.invoke(trace_id="Root=1-def").json == "Root=1-def"
    assert environment.invoke().json is None


def test_what_is_printed_is_in_the_log_before_the_answer(run: Run) -> None:
    environment = run(
        "import os, sys\n"
        "def handler(event, context):\n"
        "    print('one', 'zwö')\n    print('partial', end='')\n"
        "    sys.stderr.write('error')\n    os.write(1, b'raw\\n')\n"
    )
    environment.invoke()
    log = environment.log()
    assert log.startswith("one zwö\n")
    assert sorted(re.findall("partial|error|raw", log)) == ["error", "partial", "raw"]


def test_logging_has_awss_format_and_level(run: Run) -> None:
    environment = run(
        "import logging\n"
        "logging.warning('while loading')\n"
        "def handler(event, context):\n"
        "    logging.info('not shown')\n"
        "    logging.warning('shown %d', 1)\n"
        "    logging.getLogger().setLevel(logging.INFO)\n"
        "    logging.getLogger('some.part').info('now shown')\n"
        "    context.log('plain\\n')\n"
    )
    environment.invoke(request_id="the-id")
    assert re.fullmatch(
        rf"\[WARNING\]\t{_ISO}\t\twhile loading\n"
        rf"\[WARNING\]\t{_ISO}\tthe-id\tshown 1\n"
        rf"\[INFO\]\t{_ISO}\tthe-id\tnow shown\n"
        "plain\n",
        environment.log(),
    )


def test_a_log_level_can_be_set_from_outside(zygote: Zygote, code: Code) -> None:
    environment = zygote.spawn(
        code("import logging\ndef handler(event, context): logging.debug('seen')")
    )
    environment.init(variables={"AWS_LAMBDA_LOG_LEVEL": "debug"})
    environment.invoke()
    assert environment.log().endswith("\tseen\n")


def test_the_search_path_is_awss_and_the_platform_is_not_on_it(run: Run) -> None:
    environment = run(
        "import importlib.util, sys\n"
        "def handler(event, context):\n"
        "    names = ['redis', 'anyio', 'trivet', 'pytest']\n"
        "    found = [name for name in names if importlib.util.find_spec(name)]\n"
        "    return sys.path, found, sys.argv\n"
    )
    path, found, arguments = environment.invoke().json
    version = re.search(r"python3\.\d+", "".join(path))
    assert version is not None
    assert path[:4] == [
        "/var/task",
        f"/opt/python/lib/{version[0]}/site-packages",
        "/opt/python",
        "/var/runtime",
    ]
    assert not [folder for folder in path[4:] if "packages" in folder]
    assert found == []
    assert arguments == [""]


def test_the_whole_standard_library_can_be_imported(run: Run) -> None:
    environment = run(
        "import asyncio, concurrent.futures, ctypes, email, http.client, sqlite3, ssl\n"
        "import subprocess, sys, urllib.request, zoneinfo\n"
        "def handler(event, context):\n"
        "    ran = subprocess.run([sys.executable, '-c', 'print(6 * 7)'], capture_output=True)\n"
        "    return ran.stdout.decode(), asyncio.run(asyncio.sleep(0, 'slept'))\n"
    )
    assert environment.invoke().json == ["42\n", "slept"]


@pytest.mark.parametrize("handler", ["pkg/mod.handler", "pkg.mod.handler"])
def test_a_handler_may_live_in_a_package(
    zygote: Zygote, files: Callable[[dict[str, str]], Path], handler: str
) -> None:
    environment = zygote.spawn(
        files(
            {
                "pkg/mod.py": "from pkg import near\ndef handler(e, c): return near.x",
                "pkg/near.py": "x = 'near'",
            }
        )
    )
    assert environment.init(handler).kind == wire.INITIALISED
    assert environment.invoke().json == "near"


def test_a_module_of_the_function_may_be_named_like_one_that_is_preloaded(
    zygote: Zygote, files: Callable[[dict[str, str]], Path]
) -> None:
    environment = zygote.spawn(
        files(
            {"random.py": "import uuid\ndef handler(e, c): return uuid.mine", "uuid.py": "mine = 1"}
        )
    )
    environment.init("random.handler")
    assert environment.invoke().json == 1


def test_two_environments_have_random_numbers_of_their_own(run: Run) -> None:
    source = "import random, uuid\ndef handler(e, c): return [random.random(), str(uuid.uuid4())]"
    first, second = (run(source).invoke().json for _ in range(2))
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_what_the_zygote_rehearsed_leaves_no_trace(zygote: Zygote, code: Code) -> None:
    environment = zygote.spawn(
        code(
            "import logging, sys\n"
            "def handler(event, context):\n"
            "    return ['sample' in sys.modules, [p for p in sys.path_importer_cache\n"
            "            if 'trivet_worker' in p], len(logging.getLogger().handlers)]\n"
        )
    )
    environment.init()
    assert environment.invoke().json == [False, [], 1]
    assert environment.log() == ""


def test_one_that_waits_makes_its_pages_its_own_and_keeps_no_trace(
    zygote: Zygote, code: Code
) -> None:
    folder = code(
        "import os, sys\n"
        "known = [sorted(sys.modules), sorted(sys.path_importer_cache), sys.path]\n"
        "def handler(event, context):\n"
        "    return [*known, sys.argv, dict(os.environ), os.listdir('/proc/self/fd')]\n"
    )
    at_once, waiting = (zygote.spawn(folder) for _ in range(2))
    at_once.init()
    begun = page_faults(waiting)
    ends = time.monotonic() + DEADLINE_S
    while page_faults(waiting) < begun + 150:
        assert time.monotonic() < ends, "it has not touched them"
    waiting.init()
    assert waiting.invoke().json == at_once.invoke().json
    assert waiting.log() == ""


def page_faults(environment: Environment) -> int:
    """How many it has had."""
    stat = Path(f"/proc/{environment.pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[7])


def test_a_log_level_is_the_functions_own(zygote: Zygote, code: Code) -> None:
    source = "import logging\ndef handler(event, context): return logging.getLogger().level\n"
    folder = code(source)
    levels = []
    for variables in ({}, {"AWS_LAMBDA_LOG_LEVEL": "debug"}, {}):
        environment = zygote.spawn(folder)
        environment.init(variables=variables)
        levels.append(environment.invoke().json)
    assert levels == [30, 10, 30]


def test_forks_of_one_zygote_are_different(run: Run) -> None:
    source = (
        "import os, random, threading\n"
        "def handler(event, context):\n"
        "    reader, writer = os.pipe()\n"
        "    if os.fork() == 0:\n"
        "        os.write(writer, str(random.random()).encode())\n"
        "        os._exit(0)\n"
        "    os.wait()\n"
        "    main = threading.main_thread()\n"
        "    drawn = [float(os.read(reader, 100)), random.random()]\n"
        "    return [drawn, main.native_id == threading.get_native_id(), main.ident]\n"
    )
    found = [run(source).invoke().json for _ in range(3)]
    drawn = [number for numbers, _, _ in found for number in numbers]
    assert len(set(drawn)) == len(drawn)  # children of environments, too
    assert all(is_itself for _, is_itself, _ in found)


def test_code_is_not_compiled_in_vain(run: Run) -> None:
    environment = run("import sys\ndef handler(event, context): return sys.dont_write_bytecode\n")
    assert environment.invoke().json is True
