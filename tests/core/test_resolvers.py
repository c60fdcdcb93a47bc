"""The resolvers that an operator names, and those that a resolv.conf does."""

from __future__ import annotations

import pytest

from trivet.core.resolvers import parse_resolvers, resolvers_in


def test_they_are_addresses_with_ports_or_without() -> None:
    assert parse_resolvers("") == ()
    assert parse_resolvers("192.0.2.53 192.0.2.54:5353 [2001:db8::53]:5354") == (
        ("192.0.2.53", 53),
        ("192.0.2.54", 5353),
        ("2001:db8::53", 5354),
    )
    assert parse_resolvers("[fe80::1%eth0]") == (("fe80::1%eth0", 53),)
    assert parse_resolvers("2001:db8::53") == (("2001:db8::53", 53),)


@pytest.mark.parametrize(
    "text",
    ["dns.example.com", "192.0.2", "192.0.2.53:0", "192.0.2.53:65536", "192.0.2.53:", "[]", "a]"],
)
def test_what_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="is not an address") as told:
        parse_resolvers(text)
    assert f'"{text}"' in str(told.value)


def test_more_than_the_c_library_takes_are_refused() -> None:
    with pytest.raises(ValueError, match="3 are the most"):
        parse_resolvers("192.0.2.1 192.0.2.2 192.0.2.3 192.0.2.4")


def test_of_a_resolv_conf_only_what_can_be_used_counts() -> None:
    text = "# nameserver 192.0.2.9\nsearch example.com\nnameserver\nnameserver here\n"
    assert resolvers_in(text) == ()
    text += "nameserver 192.0.2.1\n" * 4
    assert resolvers_in(text) == (("192.0.2.1", 53),) * 3
