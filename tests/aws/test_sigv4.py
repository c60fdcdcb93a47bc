"""Signatures: what botocore signs is accepted, and nothing else is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.auth import S3SigV4Auth, SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from trivet.aws.canonical import normalized
from trivet.aws.refusals import Refused
from trivet.aws.sigv4 import Verified, Verifier

KEY, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
HOST = "127.0.0.1:4566"

unhurried = settings(deadline=None)


@dataclass(frozen=True)
class Sent:
    """A request as the server sees it."""

    method: str
    path: bytes
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes

    def header(self, name: bytes) -> bytes:
        return dict(self.headers)[name]

    def with_header(self, name: bytes, value: bytes) -> Sent:
        others = tuple(pair for pair in self.headers if pair[0] != name)
        return replace(self, headers=(*others, (name, value)))


def verified(sent: Sent, verifier: Verifier | None = None) -> Verified:
    verifier = verifier or Verifier({KEY: SECRET}.get, "us-east-1")
    return verifier.verify(sent.method, sent.path, sent.query, sent.headers, sent.body)


def refused(sent: Sent, verifier: Verifier | None = None) -> Refused:
    with pytest.raises(Refused) as error:
        verified(sent, verifier)
    return error.value


def signed(
    method: str = "POST",
    path: str = "/2015-03-31/functions/hello/invocations",
    query: str = "",
    headers: dict[str, str] | None = None,
    body: bytes = b"{}",
    *,
    service: str = "lambda",
    region: str = "us-east-1",
    signer: Any = SigV4Auth,
    **options: Any,
) -> Sent:
    """What botocore's own signer makes of a request."""
    url = f"http://{HOST}{path}{'?' if query else ''}{query}"
    request = AWSRequest(method, url, headers=dict(headers or {}), data=body)
    signer(Credentials(KEY, SECRET), service, region, **options).add_auth(request)
    parted = request.url.removeprefix(f"http://{HOST}").partition("?")
    found = {name.lower().encode(): value.encode() for name, value in request.headers.items()}
    found.setdefault(b"host", HOST.encode())
    return Sent(method, parted[0].encode(), parted[2].encode(), tuple(found.items()), body)


def presigned(seconds: int = 60, **members: Any) -> Sent:
    # Botocore would move a body into the query.
    return signed(**{**members, "body": b""}, signer=SigV4QueryAuth, expires=seconds)


plain_segments = ["a", "functions", "~x", "a+b", "$LATEST", "a:b", "a=b", "a,b(c)'!*"]
encoded_segments = ["arn%3Aaws%3Alambda", "%2F", "a%20b", "%C3%A9", "%25", "%3a"]
segments = st.sampled_from([*plain_segments, *encoded_segments, ".", "..", ""])
paths = st.lists(segments, max_size=5).map(lambda parts: "/" + "/".join(parts))
words = st.text("ab.-_~+%&=/:é \t*", max_size=6).map(lambda text: text.replace("%", "%25"))
encoded = words.map(
    lambda text: "".join(c if c in "ab.-_~+%*:/25" else f"%{ord(c):02X}" for c in text)
)
queries = st.lists(
    st.one_of(st.tuples(encoded, encoded).map("=".join), encoded.filter(bool)), max_size=5
).map("&".join)
values = st.text("ab ,;:=%+\t/", max_size=12)
header_names = st.sampled_from(
    ["Content-Type", "X-Amz-Log-Type", "x-amz-invocation-type", "X-Other", "Amz-Sdk-Request"]
)
requests = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["GET", "POST", "PUT", "DELETE"]),
        "path": paths,
        "query": queries,
        "headers": st.dictionaries(header_names, values, max_size=4),
        "body": st.binary(max_size=64),
        "service": st.sampled_from(["lambda", "logs", "apigateway"]),
    }
)


@unhurried
@given(requests)
@example({"query": "a=b+c&a=b%20c&a&=&b=%2b&a=a"})
@example({"path": "/a/./b//../c/"})
def test_what_botocore_signs_is_accepted(request: dict[str, Any]) -> None:
    service = request.get("service", "lambda")
    assert verified(signed(**request)) == Verified(KEY, service)


@unhurried
@given(requests)
def test_what_botocore_presigns_is_accepted(request: dict[str, Any]) -> None:
    assert verified(presigned(**request)) == Verified(KEY, request["service"])


@unhurried
@given(paths, st.binary(max_size=16))
def test_a_path_of_s3_is_signed_as_it_is(path: str, body: bytes) -> None:
    sent = signed("PUT", path, body=body, service="s3", signer=S3SigV4Auth)
    assert verified(sent) == Verified(KEY, "s3")
    if "/./" in path:
        refused(replace(sent, path=path.replace("/./", "/").encode()))


mutations = st.sampled_from(["method", "path", "query", "header", "body", "drop", "add", "value"])


@unhurried
@given(requests, mutations, st.booleans(), st.data())
def test_nothing_signed_may_change(
    request: dict[str, Any], mutation: str, in_query: bool, data: st.DataObject
) -> None:
    sent = presigned(**request) if in_query else signed(**request)
    names = b";".join(name for name, _ in sent.headers)
    if mutation == "method":
        changed = replace(sent, method="PATCH")
    elif mutation == "path":
        changed = replace(sent, path=data.draw(paths).encode())
        assume(normalized(changed.path) != normalized(sent.path))
    elif mutation == "query":
        changed = replace(sent, query=sent.query + b"&" * bool(sent.query) + b"more=1")
    elif mutation == "body":
        changed = replace(sent, body=data.draw(st.binary(max_size=64)))
        assume(changed.body != sent.body)
    elif mutation == "add":
        assume(b"x-amz-tenant-id" not in names)
        changed = sent.with_header(b"x-amz-tenant-id", b"t")
    else:
        name, value = data.draw(st.sampled_from(sent.headers))
        assume(name != b"authorization")
        if mutation == "drop":
            changed = replace(sent, headers=tuple(p for p in sent.headers if p[0] != name))
        else:
            changed = sent.with_header(name, value + b"x")
    assert refused(changed).status in (400, 403)


@unhurried
@given(st.integers(0, 63), st.booleans())
@example(0, False)
def test_no_other_signature_is_accepted(index: int, in_query: bool) -> None:
    sent = presigned() if in_query else signed()
    part = sent.query if in_query else sent.header(b"authorization")
    place = part.index(b"Signature=") + len(b"Signature=") + index
    other = b"1" if part[place : place + 1] == b"0" else b"0"
    text = part[:place] + other + part[place + 1 :]
    changed = replace(sent, query=text) if in_query else sent.with_header(b"authorization", text)
    assert refused(changed).error_type == "InvalidSignatureException"


def test_spellings_that_mean_the_same_are_accepted() -> None:
    sent = signed(query="a=b%20c&d=%3A")
    assert verified(replace(sent, query=b"d=%3a&a=b+c")).access_key == KEY
    refused(replace(sent, query=b"d=%3A&a=b%2Bc"))


def test_a_second_header_of_a_name_counts() -> None:
    sent = signed(headers={"X-Amz-Log-Type": "None"})
    twice = replace(sent, headers=(*sent.headers, (b"x-amz-log-type", b"Tail")))
    assert refused(twice).error_type == "InvalidSignatureException"


def clock(**offset: float) -> Verifier:
    now = datetime.now(UTC) + timedelta(**offset)
    return Verifier({KEY: SECRET}.get, "us-east-1", now=lambda: now)


def test_a_signature_lives_for_five_minutes() -> None:
    sent = signed()
    assert verified(sent, clock(minutes=4)).access_key == KEY
    assert verified(sent, clock(minutes=-4)).access_key == KEY
    late = refused(sent, clock(minutes=6))
    stamp = sent.header(b"x-amz-date").decode()
    assert (late.error_type, late.status) == ("InvalidSignatureException", 403)
    assert late.message.startswith(f"Signature expired: {stamp} is now earlier than ")
    assert late.message.endswith("Z - 5 min.)")
    early = refused(sent, clock(minutes=-6))
    assert early.message.startswith(f"Signature not yet current: {stamp} is still later than ")
    assert early.message.endswith("Z + 5 min.)")


def test_a_presigned_url_lives_as_long_as_it_says() -> None:
    sent = presigned(seconds=600)
    assert verified(sent, clock(seconds=590)).access_key == KEY
    assert refused(sent, clock(seconds=610)).message.startswith("Signature expired: ")
    assert refused(sent, clock(minutes=-6)).message.startswith("Signature not yet current: ")
    assert "3600" in refused(presigned(seconds=3_601)).message
    longer = Verifier({KEY: SECRET}.get, "us-east-1", presigned_limit_s=604_800)
    assert verified(presigned(seconds=604_800), longer).access_key == KEY
    assert refused(presigned(seconds=604_801), longer).status == 400
    for expires in (b"0", b"-1", b"1e3", b"", b"99999999999999999999"):
        query = sent.query.replace(b"X-Amz-Expires=600", b"X-Amz-Expires=" + expires)
        assert refused(replace(sent, query=query)).error_type == "IncompleteSignatureException"


def test_a_signature_may_be_dated_by_the_date_header() -> None:
    sent = signed(headers={"Date": "is replaced"})
    assert b"x-amz-date" not in dict(sent.headers)
    assert verified(sent).access_key == KEY
    assert refused(sent.with_header(b"date", b"yesterday")).status == 400


def test_a_credential_is_for_one_region() -> None:
    elsewhere = refused(signed(region="eu-west-1"))
    assert elsewhere.message == "Credential should be scoped to a valid region. "
    assert elsewhere.error_type == "InvalidSignatureException"
    away = Verifier({KEY: SECRET}.get, "eu-west-1")
    assert verified(signed(service="sts"), away).service == "sts"
    refused(signed(service="lambda"), away)


def test_an_unknown_key_and_a_session_token_are_invalid_tokens() -> None:
    stranger = Verifier({"OTHER": SECRET}.get, "us-east-1")
    for refusal in (
        refused(signed(), stranger),
        refused(presigned(), stranger),
        refused(signed(headers={"X-Amz-Security-Token": "t"})),
        refused(presigned(query="X-Amz-Security-Token=t")),
    ):
        assert (refusal.error_type, refusal.status) == ("UnrecognizedClientException", 403)
        assert refusal.message == "The security token included in the request is invalid."


def test_a_changed_secret_counts_at_once() -> None:
    secrets = {KEY: SECRET}
    verifier = Verifier(secrets.get, "us-east-1")
    sent = signed()
    assert verified(sent, verifier) == verified(sent, verifier)
    secrets[KEY] = "another"
    assert refused(sent, verifier).error_type == "InvalidSignatureException"


def test_no_authentication_at_all() -> None:
    refusal = refused(Sent("GET", b"/", b"", ((b"host", HOST.encode()),), b""))
    assert (refusal.error_type, refusal.status) == ("MissingAuthenticationTokenException", 403)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (b"AWS4-HMAC-SHA256 ", b"AWS4-ECDSA-P256-SHA256 ", "Unsupported AWS 'algorithm'"),
        (b"AWS4-HMAC-SHA256 ", b"Bearer ", "requires 'Credential' parameter."),
        (b"Credential=", b"Nonsense=", "requires 'Credential' parameter."),
        (b"Signature=", b"Nonsense=", "requires 'Signature' parameter."),
        (b"SignedHeaders=", b"Nonsense=", "requires 'SignedHeaders' parameter."),
        (b"/aws4_request", b"", "exactly 5 slash-delimited elements"),
    ],
)
def test_an_incomplete_authorization_is_told_what_it_lacks(
    old: bytes, new: bytes, told: str
) -> None:
    sent = signed()
    header = sent.header(b"authorization").replace(old, new)
    refusal = refused(sent.with_header(b"authorization", header))
    assert (refusal.error_type, refusal.status) == ("IncompleteSignatureException", 400)
    assert told in refusal.message


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"SignedHeaders=host;", b"SignedHeaders="),
        (b";x-amz-date", b""),
        (b"SignedHeaders=host;", b"SignedHeaders=absent;host;"),
        (b"/aws4_request", b"/aws5_request"),
        (b"/lambda/", b"/logs/"),
        (b"/us-east-1/", b"/us-east-2/"),
    ],
)
def test_a_scope_or_list_that_was_not_signed_is_refused(old: bytes, new: bytes) -> None:
    sent = signed()
    header = sent.header(b"authorization")
    assert old in header
    refusal = refused(sent.with_header(b"authorization", header.replace(old, new)))
    assert (refusal.error_type, refusal.status) == ("InvalidSignatureException", 403)


def test_the_day_of_the_scope_is_the_day_of_the_date() -> None:
    sent = signed()
    day = sent.header(b"x-amz-date")[:8]
    header = sent.header(b"authorization").replace(day, b"20200101")
    message = refused(sent.with_header(b"authorization", header)).message
    assert message.startswith("Date in Credential scope does not match YYYYMMDD")


@pytest.mark.parametrize("date", [b"", b"20261123", b"20261399T000000Z", b"2026-11-23T10:00:00Z"])
def test_a_date_of_another_form_is_refused(date: bytes) -> None:
    assert refused(signed().with_header(b"x-amz-date", date)).status in (400, 403)


def test_the_header_and_the_query_may_not_both_authenticate() -> None:
    sent = presigned()
    both = sent.with_header(b"authorization", signed().header(b"authorization"))
    assert refused(both).error_type == "IncompleteSignatureException"
    twice = replace(sent, query=sent.query + b"&X-Amz-Date=20261123T100000Z")
    assert "only once" in refused(twice).message


def test_a_body_may_not_be_declared_unsigned() -> None:
    sent = signed(headers={"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"})
    assert refused(sent).error_type == "InvalidSignatureException"


@unhurried
@given(
    st.binary(max_size=40),
    st.binary(max_size=40),
    st.lists(
        st.tuples(
            st.sampled_from([b"authorization", b"x-amz-date", b"host", b"date"]),
            st.one_of(
                st.binary(max_size=60),
                st.sampled_from(
                    [
                        b"AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20261123/us-east-1/s/aws4_request"
                        b", SignedHeaders=host;x-amz-date, Signature=\xff",
                        b"20261123T100000Z",
                    ]
                ),
            ),
        ),
        max_size=5,
    ),
)
def test_rubbish_is_a_refusal_and_no_crash(
    path: bytes, query: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    at = datetime(2026, 11, 23, 10, tzinfo=UTC)
    verifier = Verifier({KEY: SECRET}.get, "us-east-1", now=lambda: at)
    with pytest.raises(Refused):
        verifier.verify("GET", path, query, headers, b"")
    with pytest.raises(Refused):
        verifier.verify("GET", path, b"X-Amz-Algorithm=AWS4-HMAC-SHA256&" + query, headers, b"")
