"""Which addresses are listened at, and which may be called for a client."""

import pytest

from mayfly.errors import ConfigError
from mayfly.host.addresses import Address, Targets, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", Address("127.0.0.1", 8080)),
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:65535", Address("::1", 65535)),
    ],
)
def test_an_address_is_read_and_written(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert str(address) == text


@pytest.mark.parametrize(
    "text", ["", "8080", ":8080", "localhost", "localhost:", "localhost:65536", "::1:80", "http://x:1", "a b:1", "x:-1"]
)
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is not an address") as caught:
        parse_address(text)
    assert "127.0.0.1:8080" in caught.value.hint


INSIDE = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "10.1.2.3",
    "172.31.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "224.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "64:ff9b::7f00:1",
    "2002:7f00:1::",
    "2001:0:7f00:1::",
    "fe80::1",
    "fe80::1%eth0",
    "fd00::1",
    "ff02::1",
    "not an address",
]


def test_only_the_public_internet_is_called() -> None:
    targets = Targets(())
    for address in INSIDE:
        assert not targets.allows("hooks.example.com", address), address
    for address in ("8.8.8.8", "2606:4700::1111"):
        assert targets.allows("hooks.example.com", address)


def test_what_is_allowed_besides() -> None:
    targets = Targets(("10.0.0.0/8", "127.0.0.1", "Hooks.internal", "fd00::/8"))
    assert targets.allows("x", "10.9.9.9")
    assert targets.allows("127.0.0.1", "127.0.0.1")
    assert targets.allows("x", "fd00::5")
    assert targets.allows("hooks.INTERNAL.", "192.168.0.1")
    assert not targets.allows("x", "127.0.0.2")
    assert not targets.allows("hooks.internal.evil.example", "192.168.0.1")
    for wrong in ("10.0.0.0/33", "10.0.0.1/8", "http://x", "", "a b"):
        with pytest.raises(ConfigError, match="callback_hosts"):
            Targets((wrong,))
