"""Functions' credentials: the real client signs with them, and may do what functions may."""

from __future__ import annotations

import base64
import socket
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from hypothesis import example, given
from hypothesis import strategies as st
from redis.asyncio import Redis
from tests.platform.conftest import ACCESS_KEY, SECRET, zip_of

from trivet.aws import lambda_, sts
from trivet.aws.door import Door
from trivet.aws.services import Services
from trivet.aws.sigv4 import Verifier
from trivet.bus import keys
from trivet.core.roles import KEY_BYTES, LIFETIME_S, Credentials, Session, allows, issue, recognise
from trivet.gateway.listener import serve
from trivet.settings import Settings
from trivet.store.roles import Roles, RoleStore

KEY, OTHER_KEY = b"k" * KEY_BYTES, b"o" * KEY_BYTES
ROLE = "arn:aws:iam::123456789012:role/service/worker"
SESSION = Session("hello", ROLE, 1_700_000_000)
ARN = "arn:aws:sts::123456789012:assumed-role/worker/hello"

Client = Callable[..., Any]
"""client("lambda", credentials): boto3's, of a door that knows functions."""


# ---------------------------------------------------------------------------------- credentials


def test_credentials_are_recognised() -> None:
    credentials = issue(KEY, SESSION)
    assert credentials.access_key.startswith("ASIA")
    assert len(credentials.access_key) == 20
    assert len(credentials.secret) == 40
    found = recognise(KEY, credentials.access_key, credentials.token)
    assert found == (credentials.secret, SESSION)


def test_no_part_of_them_is_shared_between_functions_or_platforms() -> None:
    parts = [
        value
        for key, session in [
            (KEY, SESSION),
            (OTHER_KEY, SESSION),
            (KEY, Session("hello2", ROLE, SESSION.issued_s)),
            # The same letters, divided elsewhere.
            (KEY, Session("hell", "o" + ROLE, SESSION.issued_s)),
            (KEY, Session("hello", ROLE, SESSION.issued_s + 1)),
        ]
        for credentials in [issue(key, session)]
        for value in (credentials.access_key, credentials.secret, credentials.token)
    ]
    assert len(set(parts)) == len(parts) == 15


def test_credentials_of_another_platform_or_another_key_id_are_not_recognised() -> None:
    mine, others = issue(KEY, SESSION), issue(KEY, Session("other", ROLE, SESSION.issued_s))
    assert recognise(OTHER_KEY, mine.access_key, mine.token) is None
    assert recognise(KEY, mine.access_key, others.token) is None
    assert recognise(KEY, ACCESS_KEY, mine.token) is None


def test_a_token_that_was_changed_anywhere_is_not_recognised() -> None:
    credentials = issue(KEY, SESSION)
    assert credentials.token.isascii()
    for at in range(len(credentials.token.rstrip("="))):
        for other in "Aa0-":
            token = credentials.token[:at] + other + credentials.token[at + 1 :]
            # The last letter has bits that stand for nothing.
            if base64.urlsafe_b64decode(token) != base64.urlsafe_b64decode(credentials.token):
                assert recognise(KEY, credentials.access_key, token) is None


@given(st.text(max_size=300))
@example("")
@example("AAAA")
@example("\udc80")
@example("é" * 40)
def test_a_token_that_is_none_is_not_recognised(token: str) -> None:
    assert recognise(KEY, issue(KEY, SESSION).access_key, token) is None


def test_a_secret_shows_in_no_log() -> None:
    assert issue(KEY, SESSION).secret not in repr(issue(KEY, SESSION))
    assert repr(KEY) not in repr(Roles(KEY))


@pytest.mark.parametrize(
    ("actions", "action", "is_allowed"),
    [
        ("lambda:InvokeFunction", "lambda:InvokeFunction", True),
        ("LAMBDA:invokefunction", "lambda:InvokeFunction", True),
        ("lambda:Invoke*", "lambda:InvokeFunction", True),
        ("*", "lambda:DeleteFunction", True),
        ("lambda:*", "sts:GetCallerIdentity", False),
        ("lambda:Invoke", "lambda:InvokeFunction", False),
        ("lambda:[a-z]*", "lambda:InvokeFunction", False),
        ("", "lambda:InvokeFunction", False),
    ],
)
def test_actions(actions: str, action: str, is_allowed: bool) -> None:
    assert allows(actions.split(), action) is is_allowed


# ----------------------------------------------------------------------------------- the store


@pytest.mark.anyio
async def test_the_role_key_is_made_once_however_many_start(durable: Redis) -> None:
    made: list[Roles] = []

    async def start() -> None:
        made.append(await RoleStore(durable).ensure())

    async with anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(start)
    credentials = made[0].issue("hello", ROLE)
    assert len(made) == 8
    assert all(roles.recognise(credentials.access_key, credentials.token) for roles in made)
    assert await durable.strlen(keys.ROLE_KEY) == KEY_BYTES


# ------------------------------------------------------------------------------------ the door


@pytest.fixture
async def client(services: Services) -> AsyncIterator[Client]:
    """A real listener, with functions' rights as they are by default."""
    actions = Settings().function_actions.split()
    verifier = Verifier({ACCESS_KEY: SECRET}.get, "us-east-1", sessions=Roles(KEY).recognise)
    tables = {"lambda": lambda_.OPERATIONS, "sts": sts.OPERATIONS}
    door = Door(services, verifier, tables, actions)
    stop = anyio.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"

        def client(service: str, credentials: Credentials | None = None) -> Any:
            return boto3.client(
                service,
                endpoint_url=url,
                region_name="us-east-1",
                aws_access_key_id=credentials.access_key if credentials else ACCESS_KEY,
                aws_secret_access_key=credentials.secret if credentials else SECRET,
                aws_session_token=credentials.token if credentials else None,
                config=Config(retries={"max_attempts": 0}),
            )

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(serve, door, sock=listener, stop=stop))
            yield client
            tasks.cancel_scope.cancel()


def credentials(*, age_s: int = 0, function: str = "hello") -> Credentials:
    now_s = datetime.now(UTC).timestamp()
    return Roles(KEY, now_s=lambda: now_s - age_s).issue(function, ROLE)


async def do(operation: Callable[..., Any], **settings: Any) -> Any:
    return await anyio.to_thread.run_sync(lambda: operation(**settings))


async def refusal(operation: Callable[..., Any], **settings: Any) -> tuple[str, int, str]:
    with pytest.raises(ClientError) as error:
        await do(operation, **settings)
    answer = error.value.response
    status = answer["ResponseMetadata"]["HTTPStatusCode"]
    return answer["Error"]["Code"], status, answer["Error"]["Message"]


async def deploy(client: Client, name: str = "hello", **settings: Any) -> Any:
    return await do(
        client("lambda").create_function,
        FunctionName=name,
        Runtime="python3.11",
        Handler="app.handler",
        Role=ROLE,
        Code={"ZipFile": zip_of(app="def handler(event, context): return event")},
        **settings,
    )


@pytest.mark.anyio
async def test_a_function_learns_who_it_is(client: Client) -> None:
    identity = await do(client("sts", credentials()).get_caller_identity)
    assert identity["Account"] == "123456789012"
    assert identity["Arn"] == ARN
    assert identity["UserId"].startswith("AROA")
    assert identity["UserId"].endswith(":hello")


@pytest.mark.anyio
async def test_a_function_invokes_another(client: Client) -> None:
    await deploy(client, "other")
    invoke = client("lambda", credentials()).invoke
    answer = await do(invoke, FunctionName="other", Payload=b'{"a": 1}')
    assert await anyio.to_thread.run_sync(answer["Payload"].read) == b'{"a": 1}'


@pytest.mark.anyio
async def test_what_functions_may_not_do_is_refused_in_the_words_of_iam(client: Client) -> None:
    lambda_client = client("lambda", credentials())
    resource = "arn:aws:lambda:us-east-1:123456789012:function:hello"

    def words(action: str, resource: str) -> str:
        return (
            f"User: {ARN} is not authorized to perform: {action} on resource: {resource} because "
            f"no identity-based policy allows the {action} action"
        )

    assert await refusal(lambda_client.get_function, FunctionName="hello") == (
        "AccessDeniedException",
        403,
        words("lambda:GetFunction", resource),
    )
    code = {"ZipFile": b"x" * 1_000_000}
    made = partial(lambda_client.create_function, Runtime="python3.11", Handler="a.b", Role=ROLE)
    code_of_error, status, message = await refusal(made, FunctionName="hello", Code=code)
    assert (code_of_error, status) == ("AccessDeniedException", 403)
    assert "lambda:CreateFunction" in message
    assert (await refusal(lambda_client.list_functions))[2] == words("lambda:ListFunctions", "*")


@pytest.mark.anyio
async def test_an_account_key_may_still_do_everything(client: Client) -> None:
    await deploy(client)
    assert (await do(client("lambda").list_functions))["Functions"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("age_s", "code"), [(LIFETIME_S - 60, None), (LIFETIME_S + 1, "ExpiredToken")]
)
async def test_credentials_are_good_for_a_time(
    client: Client, age_s: int, code: str | None
) -> None:
    whoami = client("sts", credentials(age_s=age_s)).get_caller_identity
    if code is None:
        assert (await do(whoami))["Arn"] == ARN
    else:
        assert (await refusal(whoami))[:2] == (code, 403)


@pytest.mark.anyio
async def test_a_token_is_no_proof_without_its_secret(client: Client) -> None:
    genuine = credentials()
    wrong = Credentials(genuine.access_key, "x" * 40, genuine.token)
    found = await refusal(client("sts", wrong).get_caller_identity)
    assert found[:2] == ("SignatureDoesNotMatch", 403)


@pytest.mark.anyio
@pytest.mark.parametrize("token", ["", "AAAA", "é", "x" * 4_000])
async def test_a_token_of_no_function_is_refused(client: Client, token: str) -> None:
    genuine = credentials()
    wrong = Credentials(genuine.access_key, genuine.secret, token)
    found = await refusal(client("sts", wrong).get_caller_identity)
    assert found[:2] == ("InvalidClientTokenId", 403)


@pytest.mark.anyio
async def test_a_token_does_not_lend_an_account_key_to_a_function(client: Client) -> None:
    mixed = Credentials(ACCESS_KEY, SECRET, credentials().token)
    found = await refusal(client("sts", mixed).get_caller_identity)
    assert found[:2] == ("InvalidClientTokenId", 403)


@pytest.mark.anyio
async def test_a_presigned_url_carries_its_token(client: Client) -> None:
    sender = client("sts", credentials())
    url = sender.generate_presigned_url("get_caller_identity", HttpMethod="GET")
    assert "X-Amz-Security-Token" in url

    def get(url: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    status, body = await anyio.to_thread.run_sync(get, url)
    assert (status, ARN.encode() in body) == (200, True)
    without = "&".join(part for part in url.split("&") if not part.startswith("X-Amz-Security"))
    assert (await anyio.to_thread.run_sync(get, without))[0] == 403


# ------------------------------------------------------------------------------ the tag of egress


@pytest.mark.anyio
async def test_the_tag_of_egress_is_checked_and_becomes_the_version(
    client: Client, services: Services
) -> None:
    await deploy(client, Tags={"trivet:egress": "api.example.com 10.0.0.0/8:443"})
    before = await services.functions.get("hello")
    assert before is not None
    assert before.latest.egress == "api.example.com 10.0.0.0/8:443"
    arn = "arn:aws:lambda:us-east-1:123456789012:function:hello"
    tag, untag = client("lambda").tag_resource, client("lambda").untag_resource
    code, status, message = await refusal(tag, Resource=arn, Tags={"trivet:egress": "intranet"})
    assert (code, status) == ("InvalidParameterValueException", 400)
    assert "intranet" in message
    await do(tag, Resource=arn, Tags={"trivet:egress": "none"})
    after = await services.functions.get("hello")
    assert after is not None
    assert (after.latest.egress, after.latest.key != before.latest.key) == ("none", True)
    await do(untag, Resource=arn, TagKeys=["trivet:egress"])
    at_last = await services.functions.get("hello")
    assert at_last is not None
    assert at_last.latest.egress == ""


@pytest.mark.anyio
async def test_a_function_with_a_bad_tag_of_egress_is_not_made(client: Client) -> None:
    with pytest.raises(ClientError) as error:
        await deploy(client, Tags={"trivet:egress": "internet none"})
    assert error.value.response["Error"]["Code"] == "InvalidParameterValueException"


def test_sessions_name_their_end() -> None:
    issued = datetime.fromtimestamp(SESSION.issued_s, UTC)
    assert SESSION.expires_s == (issued + timedelta(hours=36)).timestamp()
