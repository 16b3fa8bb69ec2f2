"""Who gets a network, which one, and that it is given back."""

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from mayfly.api.requests import parse_json
from mayfly.errors import BusyError, ConfigError, NetworkError, UnprocessableError
from mayfly.guests.told import network_words
from mayfly.host.config import Config
from mayfly.host.networks import Networks
from mayfly.host.snippet import Snippet
from mayfly.runs.service import Service
from mayfly.vmm.config import NetworkBackend
from tests.kit import net_kit
from tests.kit.api_fakes import factory, install_toys, small_config

TAP, PASST = NetworkBackend.TAP, NetworkBackend.PASST


def make(**values: Any) -> Networks:
    return Networks(Config(**values))


def test_by_default_nobody_gets_one() -> None:
    with pytest.raises(UnprocessableError, match="no network for runs"):
        make().lease()
    assert not Snippet(source=b"").network


def test_each_machine_has_addresses_of_its_own() -> None:
    networks = make(network_backend=PASST, network_subnets=("10.9.0.0/24", "fd09::/64"), network_nameservers=("9.9.9.9",))
    first, second = networks.lease(), networks.lease()
    assert (first.addresses, second.addresses) == (("10.9.0.2/24", "fd09::2/64"), ("10.9.0.3/24", "fd09::3/64"))
    assert first.gateways == second.gateways == ("10.9.0.1", "fd09::1")
    assert first.nameservers == ("9.9.9.9",)
    assert first.mac != second.mac
    assert first.mtu == 65520
    networks.give_back(first)
    again = networks.lease()
    assert again.addresses == first.addresses
    assert again.mac != first.mac


@pytest.mark.parametrize("values", [{"network_backend": TAP, "network_taps": ("mayfly0",)}, {"network_backend": PASST}])
def test_the_device_that_is_connected_to_nothing_is_of_the_same_kind_and_takes_no_place(values: dict[str, Any]) -> None:
    networks = make(**values)
    leased = networks.lease()
    device = networks.disconnected()
    assert (device.backend, device.mtu, device.connected, device.tap) == (leased.backend, leased.mtu, False, "")
    assert network_words(device) == ()
    with pytest.raises(UnprocessableError):
        make().disconnected()


def test_there_are_as_many_as_taps() -> None:
    networks = make(network_backend=TAP, network_taps=("mayfly0", "mayfly1"))
    first, second = networks.lease(), networks.lease()
    assert {first.tap, second.tap} == {"mayfly0", "mayfly1"}
    assert first.mtu == 1500
    with pytest.raises(BusyError, match="all 2 networks"):
        networks.lease()
    networks.give_back(first)
    assert networks.lease().tap == first.tap


def test_there_are_as_many_as_the_smallest_subnet_has_room_for() -> None:
    networks = make(network_backend=PASST, network_subnets=("10.9.0.0/29", "fd09::/64"))
    leased = [networks.lease() for _ in range(5)]
    assert leased[-1].addresses[0] == "10.9.0.6/29"
    with pytest.raises(BusyError):
        networks.lease()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"network_backend": TAP}, "no room"),
        ({"network_backend": PASST, "network_subnets": ()}, "no room"),
        ({"network_backend": PASST, "network_subnets": ("10.0.0.0/31",)}, "no room"),
        ({"network_backend": PASST, "network_subnets": ("10.0.0.1/8",)}, "host bits"),
        ({"network_backend": PASST, "network_subnets": ("fd09::/64",)}, "passt needs an IPv4 address"),
        ({"network_backend": PASST, "network_allow": ("everything",)}, "everything"),
        ({"network_backend": PASST, "network_nameservers": ("dns.example",)}, "dns.example"),
        ({"network_backend": TAP, "network_taps": ("../etc",)}, "tap is"),
    ],
)
def test_a_configuration_that_makes_none_is_refused_at_the_start(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make(**values)


@pytest.mark.parametrize("value", ["1", "0", '"yes"', "null", "[]", "1.0"])
def test_a_request_says_true_or_false(value: str) -> None:
    with pytest.raises(UnprocessableError, match=r"network is .*; it must be true or false"):
        parse_json(f'{{"source": "", "network": {value}}}'.encode())
    assert parse_json(b'{"source": "", "network": true}').network


def test_a_run_holds_its_network_until_it_is_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_toys(monkeypatch, tmp_path)
    config = small_config(tmp_path, network_backend=TAP, network_taps=("mayfly0",))
    asked = Snippet(language="toy", source=b"sleep 60", network=True)

    async def scenario() -> None:
        async with Service(config, factory()) as service:
            run = service.start(asked)
            with pytest.raises(BusyError):
                service.start(asked)
            service.start(Snippet(language="toy", source=b"true"))
            await service.end(run, "enough")
            with pytest.raises(UnprocessableError):
                service.start(Snippet(language="toy", source=b"", network=True, limits={"no such step": {}}))
            await service.end(service.start(asked), "enough")

    asyncio.run(scenario())


def test_each_machine_has_the_limits_of_the_configuration() -> None:
    config = Config(network_backend=PASST, network_bytes=3, network_rate=2, network_packets=1)
    found = Networks(config).lease()
    assert (found.budget, found.rate, found.packets) == (3, 2, 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes network namespaces with interfaces")
def test_a_network_leads_to_no_address_of_the_host() -> None:
    networks = make(network_backend=PASST, network_subnets=("10.9.0.0/24",))
    with net_kit.namespace():
        net_kit.make_tap("mayfly0", "95.216.1.1/24")
        net_kit.ip("address", "add", "fd00:87::1/64", "dev", "mayfly0")
        leased = networks.lease()
    assert leased.deny == ("127.0.0.1", "95.216.1.1", "::1", "fd00:87::1")
    assert networks.disconnected().deny == ()


def test_without_the_hosts_addresses_there_is_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no netlink here")

    networks = make(network_backend=PASST, network_subnets=("10.9.0.0/24",))
    monkeypatch.setattr(socket, "socket", fail)
    with pytest.raises(NetworkError, match="addresses cannot be listed: no netlink here"):
        networks.lease()
    monkeypatch.undo()
    assert networks.lease().addresses == ("10.9.0.2/24",)
