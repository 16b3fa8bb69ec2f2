"""What an agent is told of its machine."""

import pytest

from mayfly.guests.told import told
from mayfly.vmm.config import Channel, MachineConfig, NetworkBackend, NetworkConfig

NETWORK = NetworkConfig(
    backend=NetworkBackend.PASST, mac="02:00:00:00:00:05", addresses=("10.87.0.5/16",), gateways=("10.87.0.1",), nameservers=("9.9.9.9",)
)


@pytest.mark.parametrize(
    ("channel", "words"),
    [
        (Channel.NONE, []),
        (Channel.SERIAL, ["mayfly.channel=serial:/dev/ttyS1"]),
        (Channel.VIRTIO, ["mayfly.channel=virtio:mayfly.channel"]),
    ],
)
def test_an_agent_is_told_its_channel(channel: Channel, words: list[str]) -> None:
    config = MachineConfig(kernel="k", channel=channel, cmdline="last")
    assert told(config).cmdline.split() == [*words, "last"]


def test_each_channel_over_tcp_has_a_token_of_its_own() -> None:
    config = MachineConfig(kernel="k", channel=Channel.TCP, network=NETWORK)
    first, second = told(config), told(config)
    assert len(first.token) == 64
    assert first.token != second.token
    network = "mayfly.mac=02:00:00:00:00:05 mayfly.address=10.87.0.5/16 mayfly.gateway=10.87.0.1 mayfly.nameserver=9.9.9.9"
    assert first.cmdline == f"mayfly.channel=tcp:1023 mayfly.token={first.token} {network}"


def test_what_is_connected_to_nothing_is_not_told() -> None:
    config = MachineConfig(kernel="k", channel=Channel.VIRTIO, network=NETWORK.disconnected())
    assert told(config).cmdline == "mayfly.channel=virtio:mayfly.channel"
