"""What an agent is told of its machine: words on the kernel's command line, or in RESUMED."""

import os

from mayfly.protocol import words
from mayfly.schema import replace
from mayfly.vmm.config import CHANNEL_PORT, CHANNEL_PORT_NAME, Channel, MachineConfig, NetworkConfig

TOKEN_BYTES = 32
PLACES: dict[Channel, str | int] = {Channel.SERIAL: "/dev/ttyS1", Channel.VIRTIO: CHANNEL_PORT_NAME, Channel.TCP: CHANNEL_PORT}
"""Where the agent finds each channel."""


def network_words(network: NetworkConfig | None) -> tuple[str, ...]:
    """The words for a network, none for one that is connected to nothing."""
    if network is None or not network.connected:
        return ()
    given = {"mac": (network.mac,), "address": network.addresses, "gateway": network.gateways, "nameserver": network.nameservers}
    return words.network(given)


def told(config: MachineConfig) -> MachineConfig:
    """The same machine, with the words for its agent before the rest of `cmdline`.

    A channel over TCP gets a token of its own.
    """
    given = [*network_words(config.network), config.cmdline]
    if config.channel is Channel.TCP:
        config = replace(config, token=os.urandom(TOKEN_BYTES).hex())
        given.insert(0, words.token(config.token))
    if config.channel in PLACES:
        given.insert(0, words.channel(config.channel, PLACES[config.channel]))
    return replace(config, cmdline=" ".join(filter(None, given)))
