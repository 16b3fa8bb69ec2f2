"""Can this host's KVM run Linux guests? That /dev/kvm opens says little: some hosts emulate what a guest's kernel does, slowly and in part.

`python -m vmm.probe` prints the answer in a line; its exit status is 0 for yes.
"""

import dataclasses
import struct
import sys
import time

from mayfly.errors import MayflyError
from vmm.arch.x86_64 import cpu, layout
from vmm.kvm._kvm import ffi, lib
from vmm.kvm.kvm import ExitReason, Kvm, Vcpu
from vmm.kvm.mapping import Mapping
from vmm.memory import GuestMemory

LOOPS = 100_000
TRIES = 3
LIMIT_S = 0.08
"""200,000 supervisor instructions take about a millisecond on hardware, 10 in an emulated host, and over 100 where KVM emulates each."""
CODE = 0x10_0000
MEMORY = 2 << 20
TCG = b"TCGTCGTCGTCG"


@dataclasses.dataclass(frozen=True, kw_only=True)
class KvmProbe:
    """What was found.

    Attributes:
        usable: Linux guests run.
        reason: in a few words, why or why not.
        hint: what to do if not.
        emulated: this host is itself emulated (QEMU's TCG), so guests run many times slower and limits need a factor.
    """

    usable: bool
    reason: str
    hint: str
    emulated: bool


def probe() -> KvmProbe:
    """Run 200,000 supervisor instructions in a tiny guest and look at the clock."""
    emulated = _hypervisor() == TCG
    try:
        seconds = min(_time_supervisor_code() for _ in range(TRIES))
    except MayflyError as error:
        return KvmProbe(usable=False, reason=error.message, hint=error.hint, emulated=emulated)
    if seconds > LIMIT_S:
        return KvmProbe(
            usable=False,
            reason=f"KVM emulates supervisor code here ({2 * LOOPS} instructions took {seconds * 1000:.0f} ms): Linux guests do not run",
            hint="use a host with hardware virtualisation, or run the command through scripts/with-kvm",
            emulated=emulated,
        )
    kind = "in an emulated host" if emulated else "in hardware"
    return KvmProbe(
        usable=True, reason=f"KVM runs guests {kind} ({2 * LOOPS} instructions took {seconds * 1000:.1f} ms)", hint="", emulated=emulated
    )


def _hypervisor() -> bytes:
    """The vendor in CPUID leaf 0x4000_0000; zeros on bare metal."""
    registers = ffi.new("uint32_t[4]")
    lib.host_cpuid(1, 0, registers)
    if not registers[2] & cpu.Leaf1Ecx.HYPERVISOR:
        return bytes(12)
    lib.host_cpuid(0x4000_0000, 0, registers)
    return struct.pack("<3I", *registers[1:4])


def _time_supervisor_code() -> float:
    # mov ecx, LOOPS; again: dec ecx; jnz again; out 0x10, al
    code = b"\xb9" + struct.pack("<I", LOOPS) + b"\xff\xc9" + b"\x75\xfc" + b"\xe6\x10"
    with Kvm() as kvm, Mapping(MEMORY) as mapping, kvm.create_vm() as vm:
        vm.set_memory(0, 0, mapping.address, MEMORY)
        vm.ioctl("KVM_SET_TSS_ADDR", layout.TSS)
        memory = GuestMemory([(0, mapping.view[:])])
        memory.write(CODE, code)
        cpu.write_boot_tables(memory)
        memory.release()
        with vm.create_vcpu(0) as vcpu:
            cpu.set_up_vcpu(kvm, vcpu, cpus=1, entry=CODE)
            return _run_to_port(vcpu)


def _run_to_port(vcpu: Vcpu) -> float:
    began = time.monotonic()
    reason = vcpu.run()
    while reason == ExitReason.INTR:
        reason = vcpu.run()
    if reason != ExitReason.IO:
        raise MayflyError(f"the test guest ended with exit {reason} instead of a port access", hint="look at `dmesg` for messages of kvm")
    return time.monotonic() - began


if __name__ == "__main__":
    found = probe()
    print(found.reason + (f"; {found.hint}" if found.hint else ""))
    sys.exit(0 if found.usable else 1)
