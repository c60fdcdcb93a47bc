"""Resource policies: what they allow, to whom, and under which conditions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivet.core.policies import Request, Verdict, document, judge, judge_url

ARN = "arn:aws:lambda:us-east-1:123456789012:function:hello"
RULE = "arn:aws:events:us-east-1:123456789012:rule/daily"

USE_URL = {"StringEquals": {"lambda:FunctionUrlAuthType": "NONE"}}
VIA_URL = {"Bool": {"lambda:InvokedViaFunctionUrl": "true"}}


def statement(**changes: Any) -> dict[str, Any]:
    fields = {
        "Sid": "one",
        "Effect": "Allow",
        "Principal": "*",
        "Action": "lambda:InvokeFunction",
        "Resource": ARN,
    }
    return {**fields, **changes}


def asks(**changes: Any) -> Request:
    return Request(**{"action": "lambda:InvokeFunction", "resource": ARN, **changes})


def verdict(*statements: dict[str, Any], **changes: Any) -> Verdict:
    return judge(statements, asks(**changes))


def test_a_policy_without_a_word_is_silent() -> None:
    assert verdict() is Verdict.SILENT


@pytest.mark.parametrize(
    ("member", "value", "expected"),
    [
        ("Action", "lambda:InvokeFunction", Verdict.ALLOWED),
        ("Action", "lambda:invokefunction", Verdict.ALLOWED),
        ("Action", "lambda:*", Verdict.ALLOWED),
        ("Action", "*", Verdict.ALLOWED),
        ("Action", ["lambda:GetFunction", "lambda:Invoke*"], Verdict.ALLOWED),
        ("Action", "lambda:InvokeFunctionUrl", Verdict.SILENT),
        ("Action", "lambda:Invoke", Verdict.SILENT),
        ("Resource", "*", Verdict.ALLOWED),
        ("Resource", ARN[:-1] + "?", Verdict.ALLOWED),
        ("Resource", ARN + ":*", Verdict.SILENT),
        ("Resource", ARN.upper(), Verdict.SILENT),
        ("Effect", "Deny", Verdict.DENIED),
        ("Effect", "allow", Verdict.DENIED),
    ],
)
def test_a_statement_is_about_an_action_on_a_resource(
    member: str, value: Any, expected: Verdict
) -> None:
    assert verdict(statement(**{member: value})) is expected


def test_a_deny_outweighs_every_allow_wherever_it_stands() -> None:
    deny = statement(Sid="two", Effect="Deny")
    assert verdict(statement(), deny) is Verdict.DENIED
    assert verdict(deny, statement()) is Verdict.DENIED


ME = {"account": "123456789012", "principal": "arn:aws:iam::123456789012:user/me"}


@pytest.mark.parametrize(
    ("principal", "who", "is_allowed"),
    [
        ("*", {}, True),
        ("*", ME, True),
        ("*", {"service": "s3.amazonaws.com"}, True),
        ({"AWS": "*"}, {}, True),
        ({"AWS": "*"}, {"service": "s3.amazonaws.com"}, False),
        ({"AWS": "arn:aws:iam::123456789012:root"}, ME, True),
        ({"AWS": "123456789012"}, ME, True),
        ({"AWS": ["x", ME["principal"]]}, ME, True),
        ({"AWS": "arn:aws:iam::123456789012:user/you"}, ME, False),
        ({"AWS": "arn:aws:iam::999999999999:root"}, ME, False),
        ({"AWS": "arn:aws:iam::123456789012:root"}, {}, False),
        ({"AWS": ""}, {}, False),
        ({"Service": "s3.amazonaws.com"}, {"service": "s3.amazonaws.com"}, True),
        ({"Service": "s3.amazonaws.com"}, {"service": "sns.amazonaws.com"}, False),
        ({"Service": "s3.amazonaws.com"}, ME, False),
        (None, ME, False),
    ],
)
def test_a_statement_names_who_may(principal: Any, who: dict[str, str], is_allowed: bool) -> None:
    expected = Verdict.ALLOWED if is_allowed else Verdict.SILENT
    assert verdict(statement(Principal=principal), **who) is expected


@pytest.mark.parametrize(
    ("operator", "wanted", "actual", "holds"),
    [
        ("StringEquals", "a", "a", True),
        ("StringEquals", "a", "A", False),
        ("StringEquals", ["b", "a"], "a", True),
        ("StringEquals", "*", "a", False),
        ("StringEqualsIgnoreCase", "a", "A", True),
        ("StringLike", "a*c?", "abbbcd", True),
        ("StringLike", "[ab]", "a", False),
        ("ArnLike", "arn:aws:events:*:123456789012:rule/*", RULE, True),
        ("ArnLike", "arn:aws:*:rule/daily", RULE, False),
        ("ArnLike", RULE, "no arn", False),
        ("ArnEquals", RULE, RULE, True),
        ("Bool", "true", "True", True),
        ("Bool", True, "true", True),
        ("Bool", "false", "true", False),
        ("IpAddress", "192.0.2.0/24", "192.0.2.7", True),
        ("IpAddress", "192.0.2.0/24", "198.51.100.7", False),
        ("IpAddress", "no network", "192.0.2.7", False),
        ("IpAddress", "::/0", "192.0.2.7", False),
    ],
)
def test_a_condition_asks_for_a_circumstance(
    operator: str, wanted: Any, actual: str, holds: bool
) -> None:
    conditioned = statement(Condition={operator: {"AWS:SourceArn": wanted}})
    expected = Verdict.ALLOWED if holds else Verdict.SILENT
    assert verdict(conditioned, circumstances={"aws:sourcearn": actual}) is expected
    assert verdict(conditioned) is Verdict.SILENT  # a circumstance that nobody told of


def test_all_conditions_must_hold() -> None:
    both = statement(
        Condition={
            "ArnLike": {"AWS:SourceArn": RULE},
            "StringEquals": {"AWS:SourceAccount": "123456789012"},
        }
    )
    here = {"aws:SourceArn": RULE, "aws:SourceAccount": "123456789012"}
    assert verdict(both, circumstances=here) is Verdict.ALLOWED
    other = {**here, "aws:SourceAccount": "999999999999"}
    assert verdict(both, circumstances=other) is Verdict.SILENT
    assert verdict(both, circumstances={"aws:SourceArn": RULE}) is Verdict.SILENT


def test_what_cannot_be_judged_never_helps() -> None:
    strange = {"Condition": {"NumericLessThan": {"aws:MultiFactorAuthAge": "300"}}}
    assert verdict(statement(**strange)) is Verdict.SILENT
    assert verdict(statement(Effect="Deny", **strange)) is Verdict.DENIED
    assert verdict(statement(NotPrincipal="*")) is Verdict.SILENT
    assert verdict(statement(Effect="Deny", NotPrincipal="*")) is Verdict.DENIED


# -------------------------------------------------------------------------- function URLs

PUBLIC = [
    statement(Action="lambda:InvokeFunctionUrl", Condition=USE_URL),
    statement(Sid="two", Condition=VIA_URL),
]


def test_a_url_needs_both_permissions() -> None:
    assert judge_url(PUBLIC, resource=ARN, auth_type="NONE") is Verdict.ALLOWED
    for one in PUBLIC:
        assert judge_url([one], resource=ARN, auth_type="NONE") is Verdict.SILENT
    everything = statement(Action="lambda:*")
    assert judge_url([everything], resource=ARN, auth_type="NONE") is Verdict.ALLOWED


def test_a_statement_for_public_urls_is_not_one_for_signed_requests() -> None:
    assert judge_url(PUBLIC, resource=ARN, auth_type="AWS_IAM", **ME) is Verdict.SILENT


def test_either_permission_denied_is_both_denied() -> None:
    for action in ("lambda:InvokeFunction", "lambda:InvokeFunctionUrl"):
        deny = statement(Sid="no", Effect="Deny", Action=action)
        assert judge_url([*PUBLIC, deny], resource=ARN, auth_type="NONE") is Verdict.DENIED


def test_a_permission_by_way_of_the_url_is_not_one_to_invoke() -> None:
    assert verdict(*PUBLIC) is Verdict.SILENT


def test_the_document_is_written_as_aws_writes_it() -> None:
    assert document([statement(Condition=VIA_URL)]) == (
        '{"Version":"2012-10-17","Id":"default","Statement":[{"Sid":"one","Effect":"Allow",'
        '"Principal":"*","Action":"lambda:InvokeFunction",'
        f'"Resource":"{ARN}",'
        '"Condition":{"Bool":{"lambda:InvokedViaFunctionUrl":"true"}}}]}'
    )


_TEXT = st.text(alphabet="ab*?[].\\^$", max_size=12)


@given(_TEXT)
def test_what_is_no_wildcard_stands_for_itself(text: str) -> None:
    like = {"StringLike": {"k": text}}
    assert verdict(statement(Condition=like), circumstances={"k": text}) is Verdict.ALLOWED
    if "*" not in text and "?" not in text:
        other = {"k": text + "a"}
        assert verdict(statement(Condition=like), circumstances=other) is Verdict.SILENT


def test_many_stars_do_not_take_long() -> None:
    like = {"StringLike": {"k": "a*" * 200 + "b"}}
    assert verdict(statement(Condition=like), circumstances={"k": "a" * 20_000}) is Verdict.SILENT
