"""The configuration of one machine: checked when it is made, frozen, and the same as JSON for the zygote."""

import dataclasses
import json
from enum import StrEnum
from typing import Any, Self

from mayfly.errors import ConfigError

MIB = 1 << 20
MIN_MEMORY = 16 * MIB
MAX_MEMORY = 512 * 1024 * MIB
MAX_CPUS = 64
MAX_CMDLINE = 2047
"""x86's COMMAND_LINE_SIZE is 2048 with the NUL (Linux arch/x86/include/asm/setup.h)."""


class Channel(StrEnum):
    """What carries the bytes between the VMM's channel descriptor and the guest."""

    NONE = "none"
    SERIAL = "serial"
    VIRTIO = "virtio"


@dataclasses.dataclass(frozen=True, kw_only=True)
class MachineConfig:
    """One machine.

    Attributes:
        kernel: path of a vmlinux (ELF) or bzImage.
        initrd: path of an initramfs, or None.
        cmdline: kernel parameters added behind the machine's own.
        memory: guest RAM in bytes, whole MiB.
        cpus: vCPUs.
        channel: the device that carries the channel.
        user: user name that the vmm process drops to when it was started by root; None stays.
        interactive: UART0 is the guest's console, in both directions (`mayfly boot`), instead of the silent boot console,
            and there is a PIT for kernels that know no other timer.
    """

    kernel: str
    initrd: str | None = None
    cmdline: str = ""
    memory: int = 512 * MIB
    cpus: int = 1
    channel: Channel = Channel.NONE
    user: str | None = "nobody"
    interactive: bool = False

    def __post_init__(self) -> None:
        if not MIN_MEMORY <= self.memory <= MAX_MEMORY or self.memory % MIB:
            raise ConfigError(
                f"memory is {self.memory} bytes; it must be whole MiB from {MIN_MEMORY // MIB} to {MAX_MEMORY // MIB} MiB",
                hint="give a larger --memory" if self.memory < MIN_MEMORY else "",
            )
        if not 1 <= self.cpus <= MAX_CPUS:
            raise ConfigError(f"cpus is {self.cpus}; it must be from 1 to {MAX_CPUS}")
        if len(self.cmdline.encode()) > MAX_CMDLINE or not self.cmdline.isprintable():
            raise ConfigError(f"cmdline has {len(self.cmdline.encode())} bytes; at most {MAX_CMDLINE} printable ones are allowed")

    def to_json(self) -> str:
        """As JSON text, for `from_json` in another process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The configuration that `to_json` wrote; checked again."""
        raw: dict[str, Any] = json.loads(text)
        raw["channel"] = Channel(raw["channel"])
        return cls(**raw)
