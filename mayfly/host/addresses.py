"""Addresses of the Internet: those that a server listens at, and those that it may call."""

import re
from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from mayfly.errors import ConfigError
from mayfly.internet import INTERNAL, INTERNET

_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s:\[\]/@]+)):(?P<port>[0-9]{1,5})")


class Address(NamedTuple):
    """Where to listen; port 0 is one that the system chooses."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """The address in `127.0.0.1:8080`, `[::1]:8080` or `localhost:8080`.

    Raises:
        ConfigError: it is none.
    """
    found = _ADDRESS.fullmatch(text)
    if found is None or int(found["port"]) > 65535:
        raise ConfigError(
            f"listen: {text[:80]!r} is not an address", hint="write HOST:PORT, such as 127.0.0.1:8080, [::1]:8080, or 0.0.0.0:8080 for all"
        )
    return Address(found["v6"] or found["host"], int(found["port"]))


class Targets:
    """What a server may call for its clients: the public Internet, and what `allowed` names: hosts
    (whatever their addresses), addresses and networks.

    Raises:
        ConfigError: an item of `allowed` is none of these.
    """

    def __init__(self, allowed: Iterable[str]) -> None:
        self._hosts = set()
        self._networks = []
        for item in allowed:
            try:
                self._networks.append(ip_network(item))
            except ValueError:
                if not re.fullmatch(r"[A-Za-z0-9_.-]*[A-Za-z_-][A-Za-z0-9_.-]*", item):
                    raise ConfigError(
                        f"callback_hosts: {item[:80]!r} is not a host, an address or a network",
                        hint="write hooks.example.com, 10.1.2.3 or 10.0.0.0/8",
                    ) from None
                self._hosts.add(item.lower().rstrip("."))

    def allows(self, host: str, address: str) -> bool:
        """Whether `host` may be called at `address`, which is one of its own."""
        if host.lower().rstrip(".") in self._hosts:
            return True
        try:
            found = ip_address(address)
        except ValueError:
            return False
        if any(found in network for network in self._networks):
            return True
        return any(found in network for network in INTERNET) and not any(found in network for network in INTERNAL)
