"""What this host's processor and kernel give to virtual machines: two findings of `mayfly doctor`.

Both are read from /proc, /sys and /dev/kmsg below `root`, so that a test can write them.
"""

import os
import re
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

OLDEST_TRIED = (6, 12)
"""The oldest host kernel on which all tests have passed."""
IN_FIRMWARE = "switch virtualisation on in the firmware; in a virtual machine, its host must pass it on"


class Finding(NamedTuple):
    """Whether it is well, in words, and what to do if it is not."""

    ok: bool
    text: str
    hint: str = ""


class Capability(IntEnum):
    """Numbers of KVM_CHECK_EXTENSION (KVM_CAP_* in <linux/kvm.h>)."""

    IRQCHIP = 0
    USER_MEMORY = 3
    MP_STATE = 14
    IRQFD = 32
    IOEVENTFD = 36
    READONLY_MEM = 81
    ONE_REG = 70
    IMMEDIATE_EXIT = 136
    PRE_FAULT_MEMORY = 236


NEEDED = {
    "x86_64": (Capability.IRQCHIP, Capability.MP_STATE),
    "aarch64": (Capability.ONE_REG,),
}
NEEDED_BY_ALL = (Capability.USER_MEMORY, Capability.IRQFD, Capability.IOEVENTFD, Capability.READONLY_MEM, Capability.IMMEDIATE_EXIT)
USEFUL = {Capability.PRE_FAULT_MEMORY: "restored guests map their pages one by one"}
"""What a guest lacks where KVM does not have it."""


def virtualisation(arch: str, *, emulated: bool, root: Path = Path("/")) -> Finding:
    """Name the processor's virtualisation, what of it is missing, and whether it is itself nested
    or emulated (`emulated`: by QEMU's TCG).
    """
    return _arm(emulated, root) if arch == "aarch64" else _x86(emulated, root)


def _x86(emulated: bool, root: Path) -> Finding:
    lines = (line.partition(":") for line in (root / "proc/cpuinfo").read_text().splitlines())
    info = {name.strip(): set(words.split()) for name, _, words in lines}  # of the last processor
    flags = info.get("flags", set())
    where = ""
    if emulated:
        where = "; emulated: QEMU's TCG is this host's processor"
    elif "hypervisor" in flags:
        where = "; nested: this host is itself a virtual machine"
    if (root / "sys/module/kvm_pvm").exists():
        return Finding(False, f"PVM: KVM without the processor's virtualisation{where}", "use a host with VMX or SVM")
    if "vmx" in flags:
        vmx = info.get("vmx flags", set()) | flags
        parts = {"ept": "EPT", "unrestricted_guest": "unrestricted guest"}
        missing = [name for flag, name in parts.items() if not _switched_on(root, "kvm_intel", flag, flag in vmx)]
        return _extension(root, "VMX", missing, "kvm_intel", where)
    if "svm" in flags:
        missing = [] if _switched_on(root, "kvm_amd", "npt", "npt" in flags) else ["NPT"]
        return _extension(root, "SVM", missing, "kvm_amd", where)
    return Finding(False, f"neither VMX nor SVM{where}", IN_FIRMWARE)


def _switched_on(root: Path, module: str, parameter: str, there: bool) -> bool:
    """A module's parameter, which can switch off what the processor has; `there` if not loaded."""
    try:
        return (root / f"sys/module/{module}/parameters/{parameter}").read_text().strip() in ("Y", "1")
    except OSError:
        return there


def _extension(root: Path, name: str, missing: list[str], module: str, where: str) -> Finding:
    loaded = (root / f"sys/module/{module}").exists()
    slow = {"EPT", "NPT"}.intersection(missing)
    words = f" without {' and '.join(missing)}" if missing else ""
    words += " (KVM shadows the guests' page tables, which is slow)" if slow else ""
    return Finding(loaded, f"{name}{words}{'' if loaded else f'; {module} is not loaded'}{where}", f"modprobe {module}")


def _arm(emulated: bool, root: Path) -> Finding:
    where = "; emulated: QEMU's TCG is this host's processor" if emulated else ""
    if not (root / "dev/kvm").exists():
        return Finding(False, f"Linux does not run at EL2, or has no KVM{where}", IN_FIRMWARE)
    mode = re.search(r"kvm \[\d+\]: (?:Protected |Hyp )?(n?VHE) mode initialized", _kernel_log(root / "dev/kmsg"))
    return Finding(True, f"EL2{f' with {mode[1]}' if mode else ''}{where}")


def _kernel_log(path: Path) -> str:
    """What is left of the kernel's messages (dev-kmsg); "" if it may not be read."""
    log = bytearray()
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        while record := os.read(fd, 8192):
            log += record
    except OSError:  # no more for now, or overwritten meanwhile
        pass
    finally:
        os.close(fd)
    return log.decode(errors="replace")


def kernel(release: str, arch: str, has: "frozenset[int] | None") -> Finding:
    """Say how old this host's Linux is, and which of KVM's capabilities it lacks.

    Args:
        release: as uname(2) has it.
        arch: this host's.
        has: the capabilities that KVM has, if /dev/kvm can be asked.
    """
    text = f"Linux {release}"
    number = re.match(r"(\d+)\.(\d+)", release)
    if number and (int(number[1]), int(number[2])) < OLDEST_TRIED:
        text += f", older than all that Mayfly was tried on ({OLDEST_TRIED[0]}.{OLDEST_TRIED[1]})"
    if has is None:
        return Finding(True, text)
    lacking = [wanted.name for wanted in (*NEEDED_BY_ALL, *NEEDED.get(arch, ())) if wanted not in has]
    if lacking:
        return Finding(False, f"{text}: its KVM lacks {', '.join(lacking)}", "use a newer kernel")
    less = [f"without {name.name}, {effect}" for name, effect in USEFUL.items() if name not in has]
    return Finding(True, "; ".join([text, *less]))
