"""What a function may reach: how it is said, and how a tag may only narrow it."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trivet.core.egress import (
    INTERNET,
    MOST_ENTRIES,
    NONE,
    Egress,
    Kind,
    Rule,
    narrowed,
    opened,
    parse,
    parse_networks,
)


def test_a_list_holds_names_and_networks_with_their_ports() -> None:
    egress = parse("API.Example.com. .s3.example.com 10.0.0.0/8:443 198.51.100.7:8000-8100")
    assert egress.kind is Kind.LISTED
    assert egress.names == ("api.example.com", "*.s3.example.com")
    assert egress.rules == (
        Rule(ip_network("10.0.0.0/8"), 443, 443),
        Rule(ip_network("198.51.100.7/32"), 8000, 8100),
    )


@pytest.mark.parametrize("text", ["none", " Internet\n"])
def test_a_word_alone_says_all(text: str) -> None:
    assert parse(text) == (NONE if "none" in text else INTERNET)


def test_an_ipv6_network_has_brackets_where_it_has_ports() -> None:
    assert parse("2001:db8::/32").rules == (Rule(ip_network("2001:db8::/32")),)
    assert parse("[2001:db8::1]:443").rules == (Rule(ip_network("2001:db8::1/128"), 443, 443),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be"),
        ("internett", "neither a name nor a network"),
        ("none 10.0.0.0/8", "stands alone"),
        ("10.0.0.1/8", "host bits set"),
        ("10.0.0", "neither"),
        ("10.0.0.0/8:0", "ports lie between"),
        ("10.0.0.0/8:90-80", "ports lie between"),
        ("10.0.0.0/8:70000", "ports lie between"),
        ("[10.0.0.0/8]:80", "no brackets"),
        ("api.example.com:443", "neither a name nor a network"),
        ("https://api.example.com", "neither a name nor a network"),
        ("a..example.com", "neither a name nor a network"),
        ("*", "neither a name nor a network"),
        (" ".join(f"10.0.0.{n}" for n in range(MOST_ENTRIES + 1)), "is the most"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(text)


def test_the_setting_of_private_networks_takes_nothing_and_no_names() -> None:
    assert parse_networks("") == ()
    assert parse_networks("10.1.2.3:5432") == (Rule(ip_network("10.1.2.3/32"), 5432, 5432),)
    with pytest.raises(ValueError, match="neither"):
        parse_networks("db.example.com")


def test_a_pattern_stands_for_the_names_below_it_and_not_for_others() -> None:
    egress = parse("*.example.com api.test.org")
    assert egress.allows_name("A.B.Example.com.")
    assert egress.allows_name("api.test.org")
    for name in ("example.com", "badexample.com", "x.api.test.org", "test.org", ""):
        assert not egress.allows_name(name), name
    assert INTERNET.allows_name("anything")
    assert not NONE.allows_name("api.test.org")


@pytest.mark.parametrize(
    ("most", "wanted", "both"),
    [
        ("internet", "internet", "internet"),
        ("internet", "none", "none"),
        ("none", "internet", "none"),
        ("none", "10.0.0.0/8", "none"),
        ("internet", "api.example.com 10.0.0.0/8:443", "api.example.com 10.0.0.0/8:443"),
        ("api.example.com", "internet", "api.example.com"),
        ("10.0.0.0/8:400-500", "10.1.0.0/16", "10.1.0.0/16:400-500"),
        ("10.1.0.0/16:443", "10.0.0.0/8:400-500", "10.1.0.0/16:443"),
        ("10.0.0.0/8:443", "10.0.0.0/8:80", "none"),
        ("10.0.0.0/8", "192.168.0.0/16", "none"),
        ("10.0.0.0/8", "::/0", "none"),
        ("*.example.com", "a.example.com example.com b.other.org", "a.example.com"),
        ("a.example.com", "*.example.com", "a.example.com"),
        ("*.example.com", "*.b.example.com", "*.b.example.com"),
        ("a.example.com", "203.0.113.5", "none"),
    ],
)
def test_a_tag_may_only_narrow_what_the_platform_allows(most: str, wanted: str, both: str) -> None:
    assert str(narrowed(parse(most), parse(wanted))) == both


def test_private_networks_are_opened_by_the_operator_alone() -> None:
    most, allow = parse("api.example.com 10.0.0.0/8:443"), parse_networks("10.9.9.9")
    assert [str(rule) for rule in opened(most, allow)] == ["10.9.9.9/32", "10.0.0.0/8:443"]
    assert opened(INTERNET, ()) == ()


PORTS = st.tuples(st.integers(1, 65_535), st.integers(1, 65_535)).map(sorted)
NETWORKS = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(
    lambda pair: ip_network((pair[0], pair[1]), strict=False)
)
RULES = st.builds(lambda network, ports: Rule(network, *ports), NETWORKS, PORTS)
NAMES = st.sampled_from(["a.example.com", "*.example.com", "*.a.example.com", "b.test.org"])
EGRESS = st.one_of(
    st.sampled_from([NONE, INTERNET]),
    st.tuples(st.lists(RULES, max_size=3), st.lists(NAMES, max_size=3, unique=True))
    .filter(any)
    .map(lambda both: Egress(Kind.LISTED, tuple(dict.fromkeys(both[0])), tuple(both[1]))),
)


@given(EGRESS)
def test_what_is_printed_can_be_read_again(egress: Egress) -> None:
    assert parse(str(egress)) == egress


@given(EGRESS, EGRESS)
def test_narrowing_allows_nothing_that_one_of_both_forbids(one: Egress, other: Egress) -> None:
    both = narrowed(one, other)
    for name in ("a.example.com", "x.a.example.com", "example.com", "b.test.org"):
        assert both.allows_name(name) <= (one.allows_name(name) and other.allows_name(name))
    for rule in both.rules:
        for side in (one, other):
            assert side.kind is Kind.INTERNET or any(
                rule.network.subnet_of(r.network)  # type: ignore[arg-type]  # all are IPv4 here
                and r.first_port <= rule.first_port
                and rule.last_port <= r.last_port
                for r in side.rules
            )
    assert narrowed(one, one) == one or one.kind is Kind.LISTED
