"""One machine's configuration: checked when made, frozen, and JSON for the zygote."""

import ipaddress
import re
from enum import StrEnum
from typing import Self

from mayfly.errors import ConfigError
from mayfly.schema import Record, replace
from mayfly.units import MIB

MIN_MEMORY = 16 * MIB
MAX_MEMORY = 512 * 1024 * MIB
MAX_CPUS = 64
MAX_CMDLINE = 2047
"""x86's COMMAND_LINE_SIZE is 2048 with the NUL (Linux arch/x86/include/asm/setup.h)."""

MIN_MTU = 1280  # The least that IPv6 takes (RFC 8200, 5)
MAX_MTU = 65520

UID_RANGE = (0x7000_0000, 0x703F_FFFF)
"""As many ids as Linux has processes at most (pid_max), in a free range (systemd.io/UIDS-GIDS)."""
PASST_UIDS = (0x7040_0000, 0x707F_FFFF)
"""As many, behind them, for passt of machines that root starts."""

CHANNEL_PORT = 1023
"""Where the guest's agent listens, if the channel goes over TCP: unprivileged programs cannot."""
CHANNEL_PORT_NAME = "mayfly.channel"  # Of a virtio console


class Sandbox(StrEnum):
    """What a machine does where its host lacks a part of the sandbox."""

    AUTO = "auto"  # As best_effort; a server whose host lacks nothing makes it `required`
    REQUIRED = "required"  # It does not run
    BEST_EFFORT = "best_effort"  # It leaves that part out
    OFF = "off"  # It gives up its user's privileges alone


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
    PASST = "passt"  # An unprivileged process


class NetworkConfig(Record, frozen=True, kw_only=True):
    """The network of one machine. One that boots to be saved has no addresses or anything else."""

    backend: NetworkBackend
    tap: str = ""  # An interface that was made before
    mac: str  # The guest's, as 02:00:00:00:00:01
    addresses: tuple[str, ...]  # The guest's, with their networks (10.87.0.2/16), one of each version at most
    gateways: tuple[str, ...]  # At most one of each version
    nameservers: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()  # Networks that it may reach besides the Internet
    deny: tuple[str, ...] = ()  # And those that it may not reach besides internal ones: the host's own addresses
    mtu: int = 1500  # Bytes of the largest IP packet
    budget: int = 0  # Bytes of frames in all, both directions together; 0: any number
    rate: int = 0  # Bytes a second, in each direction
    packets: int = 0  # Packets a second, in each direction

    def __post_init__(self) -> None:
        if self.backend is NetworkBackend.NONE:
            raise ConfigError("network: the back end is none; a machine without a network has no such configuration")
        if (self.backend is NetworkBackend.TAP and self.connected) != bool(re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", self.tap)):
            raise ConfigError(f"tap is {self.tap!r}; it must be an interface's name with the back end tap and an address, else empty")
        if not re.fullmatch(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}", self.mac):
            raise ConfigError(f"mac is {self.mac!r}; it must be a unicast address such as 02:00:00:00:00:01")
        if not MIN_MTU <= self.mtu <= MAX_MTU:
            raise ConfigError(f"mtu is {self.mtu}; it must be from {MIN_MTU} to {MAX_MTU}")
        if min(self.budget, self.rate, self.packets) < 0:
            raise ConfigError(f"budget, rate and packets are {self.budget}, {self.rate} and {self.packets}; none may be less than 0")
        try:
            versions = [ipaddress.ip_interface(text).version for text in self.addresses]
            routed = [ipaddress.ip_address(text).version for text in self.gateways]
            for text in self.nameservers:
                ipaddress.ip_address(text)
            for text in (*self.allow, *self.deny):
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

    def disconnected(self) -> Self:
        """The same device with nothing connected to it."""
        return replace(self, tap="", addresses=(), gateways=(), nameservers=(), allow=(), deny=(), budget=0, rate=0, packets=0)

    @property
    def limited(self) -> bool:
        """Whether it has a limit of its own."""
        return bool(self.budget or self.rate or self.packets)


class Layer(Record, frozen=True, kw_only=True):
    """A snapshot that a machine goes on from, and how its pages get into guest RAM."""

    folder: str
    copied: bool = False  # Read at once into memory of the machine's own, not mapped from the page cache
    working_set: bool = False  # Pages that it notes as read soon are mapped for the guest when that is asked for
    eager: bool = False  # They are before the machine runs, and those noted as written soon are copied


class MachineConfig(Record, frozen=True, kw_only=True):
    """One machine."""

    kernel: str  # Path of a vmlinux (ELF), bzImage or arm64 Image
    initrd: str | None = None
    cmdline: str = ""  # Kernel parameters added behind the machine's own
    memory: int = 512 * MIB  # Bytes of guest RAM, whole MiB
    cpus: int = 1
    channel: Channel = Channel.NONE
    token: str = ""  # Shown first to who listens for a channel over TCP
    user: str | None = "nobody"  # Whom the vmm process becomes if root started it
    uid_range: tuple[int, int] = UID_RANGE  # The first and the last id of root's machines, each of which gets its own
    sandbox: Sandbox = Sandbox.BEST_EFFORT
    interactive: bool = False  # UART0 is the guest's console (`mayfly boot`), and there is a PIT
    network: NetworkConfig | None = None
    restore: tuple[Layer, ...] = ()  # A base and then its diffs, to go on from
    arriving: bool = False  # The channel first brings the machine, as a stream, and it is paused then
    paused: bool = False  # It stands still until it is resumed
    page_by_page: bool = False  # Read a snapshot's pages one at a time: the next one's working set is exact then

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
        if self.arriving and self.channel is Channel.NONE:
            raise ConfigError("a machine that arrives needs a channel, which brings it")
        if self.channel is Channel.TCP:
            first = [*self.network.addresses[:1], *self.network.gateways[:1]] if self.network else []
            if [ipaddress.ip_interface(text).version for text in first] != [4, 4]:
                raise ConfigError("channel is tcp; the machine needs a network whose first address and gateway are of IPv4")
            if self.restore or self.arriving:
                raise ConfigError("channel is tcp, which a snapshot cannot hold", hint="use the channel virtio")
        if len(self.cmdline.encode()) > MAX_CMDLINE or not self.cmdline.isprintable():
            raise ConfigError(f"cmdline has {len(self.cmdline.encode())} bytes; at most {MAX_CMDLINE} printable ones are allowed")

    @property
    def devices(self) -> tuple[DeviceKind, ...]:
        """The virtio devices, in the order of their slots."""
        console = (DeviceKind.CONSOLE,) if self.channel is Channel.VIRTIO else ()
        network = (DeviceKind.NETWORK,) if self.network is not None else ()
        return (*console, DeviceKind.ENTROPY, *network)
