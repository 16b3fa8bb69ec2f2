"""One machine's configuration: checked when made, frozen, and JSON for the zygote."""

import ipaddress
import re
from enum import StrEnum
from typing import Self

from mayfly.errors import ConfigError, SchemaError
from mayfly.protocol.words import network as network_words
from mayfly.schema import Record, decode, msgspec, replace
from mayfly.units import MIB

MIN_MEMORY = 16 * MIB
MAX_MEMORY = 512 * 1024 * MIB
MAX_CPUS = 64
MAX_CMDLINE = 2047
"""x86's COMMAND_LINE_SIZE is 2048 with the NUL (Linux arch/x86/include/asm/setup.h)."""

MIN_MTU = 1280  # The least that IPv6 takes (RFC 8200, 5)
MAX_MTU = 65520

CHANNEL_PORT = 1023
"""Where the guest's agent listens, if the channel goes over TCP: unprivileged programs cannot."""


class Channel(StrEnum):
    """What carries the bytes between the VMM's channel descriptor and the guest."""

    NONE = "none"
    SERIAL = "serial"
    VIRTIO = "virtio"
    TCP = "tcp"


class DeviceKind(StrEnum):
    """A kind of virtio device."""

    CONSOLE = "console"
    ENTROPY = "entropy"
    NETWORK = "network"


class NetworkBackend(StrEnum):
    """What carries the frames of a machine's network."""

    NONE = "none"
    TAP = "tap"
    PASST = "passt"


class NetworkConfig(Record, frozen=True, kw_only=True):
    """The network of one machine.

    Attributes:
        backend: tap, an interface `tap` that was made before, or passt, an unprivileged process.
        mac: the guest's, as 02:00:00:00:00:01.
        addresses: the guest's, with their networks (10.87.0.2/16), one of IPv4 and one of IPv6 at
            most. A machine that boots to be saved has none, and is connected to nothing.
        gateways: its routers, at most one of each.
        allow: networks that it may reach besides the Internet.
        mtu: bytes of the largest IP packet.
    """

    backend: NetworkBackend
    tap: str = ""
    mac: str
    addresses: tuple[str, ...]
    gateways: tuple[str, ...]
    nameservers: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    mtu: int = 1500

    def __post_init__(self) -> None:
        if self.backend is NetworkBackend.NONE:
            raise ConfigError("network: the back end is none; a machine without a network has no such configuration")
        if (self.backend is NetworkBackend.TAP and self.connected) != bool(re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", self.tap)):
            raise ConfigError(f"tap is {self.tap!r}; it must be an interface's name with the back end tap and an address, else empty")
        if not re.fullmatch(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}", self.mac):
            raise ConfigError(f"mac is {self.mac!r}; it must be a unicast address such as 02:00:00:00:00:01")
        if not MIN_MTU <= self.mtu <= MAX_MTU:
            raise ConfigError(f"mtu is {self.mtu}; it must be from {MIN_MTU} to {MAX_MTU}")
        try:
            versions = [ipaddress.ip_interface(text).version for text in self.addresses]
            routed = [ipaddress.ip_address(text).version for text in self.gateways]
            for text in self.nameservers:
                ipaddress.ip_address(text)
            for text in self.allow:
                ipaddress.ip_network(text)
        except ValueError as error:
            raise ConfigError(f"network: {error}") from error
        if len(set(versions)) < len(versions) or len(set(routed)) < len(routed) or not set(routed) <= set(versions):
            raise ConfigError("network: at most one address of IPv4, one of IPv6, and one gateway for each of them are possible")
        if self.backend is NetworkBackend.PASST and self.connected and (versions[0], routed[:1]) != (4, [4]):
            raise ConfigError("network: passt needs an IPv4 address and gateway, before those of IPv6 if there are any")

    @property
    def connected(self) -> bool:
        """Whether there is anything at the other end of the device."""
        return bool(self.addresses)

    @property
    def mac_bytes(self) -> bytes:
        """`mac` as on the wire, 6 bytes."""
        return bytes.fromhex(self.mac.replace(":", ""))

    @property
    def words(self) -> tuple[str, ...]:
        """What the agent is told on the command line or in RESUMED (agent/PROTOCOL.md)."""
        given = {"mac": (self.mac,), "address": self.addresses, "gateway": self.gateways, "nameserver": self.nameservers}
        return network_words(given) if self.connected else ()

    def disconnected(self) -> Self:
        """The same device with nothing connected to it."""
        return replace(self, tap="", addresses=(), gateways=(), nameservers=(), allow=())


class MachineConfig(Record, frozen=True, kw_only=True):
    """One machine.

    Attributes:
        kernel: path of a vmlinux (ELF) or bzImage.
        cmdline: kernel parameters added behind the machine's own.
        memory: guest RAM in bytes, whole MiB.
        channel: what carries the channel; tcp needs a network with an IPv4 address.
        user: whom the vmm process becomes if root started it; None: nobody else.
        interactive: UART0 is the guest's console (`mayfly boot`), and there is a PIT.
        restore: folders of snapshots, a base and then its diffs, to go on from.
        page_by_page: read a snapshot's pages one at a time, so that the next one's working set is
            exact.
    """

    kernel: str
    initrd: str | None = None
    cmdline: str = ""
    memory: int = 512 * MIB
    cpus: int = 1
    channel: Channel = Channel.NONE
    user: str | None = "nobody"
    interactive: bool = False
    network: NetworkConfig | None = None
    restore: tuple[str, ...] = ()
    page_by_page: bool = False

    def __post_init__(self) -> None:
        if not MIN_MEMORY <= self.memory <= MAX_MEMORY or self.memory % MIB:
            raise ConfigError(
                f"memory is {self.memory} bytes; it must be whole MiB from {MIN_MEMORY // MIB} to {MAX_MEMORY // MIB} MiB",
                hint="give a larger --memory" if self.memory < MIN_MEMORY else "",
            )
        if not 1 <= self.cpus <= MAX_CPUS:
            raise ConfigError(f"cpus is {self.cpus}; it must be from 1 to {MAX_CPUS}")
        if self.interactive and self.restore:
            raise ConfigError("an interactive machine has no snapshots")
        if self.channel is Channel.TCP:
            first = [*self.network.addresses[:1], *self.network.gateways[:1]] if self.network else []
            if [ipaddress.ip_interface(text).version for text in first] != [4, 4]:
                raise ConfigError("channel is tcp; the machine needs a network whose first address and gateway are of IPv4")
            if self.restore:
                raise ConfigError("channel is tcp, which a snapshot cannot hold", hint="use the channel virtio")
        if len(self.cmdline.encode()) > MAX_CMDLINE or not self.cmdline.isprintable():
            raise ConfigError(f"cmdline has {len(self.cmdline.encode())} bytes; at most {MAX_CMDLINE} printable ones are allowed")

    @property
    def devices(self) -> tuple[DeviceKind, ...]:
        """The virtio devices, in the order of their slots."""
        console = (DeviceKind.CONSOLE,) if self.channel is Channel.VIRTIO else ()
        network = (DeviceKind.NETWORK,) if self.network is not None else ()
        return (*console, DeviceKind.ENTROPY, *network)

    def to_json(self) -> str:
        """As JSON text, for `from_json` in another process."""
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The configuration that `to_json` wrote; checked again. Raises ConfigError."""
        try:
            return decode(cls, text)
        except SchemaError as error:
            raise ConfigError(f"a machine's configuration: {error}", hint=error.hint) from error
