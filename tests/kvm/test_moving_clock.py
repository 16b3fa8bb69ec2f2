"""Time in a machine that moves: its clocks never go back, and each timer that it has set fires
once, at the source or at the destination, not before its time.
"""

import asyncio
from pathlib import Path

import pytest

from mayfly.guests.job import Wanted
from mayfly.guests.spawner import Spawner
from mayfly.guests.zygote import Zygote
from mayfly.images.store import Images
from mayfly.units import MIB
from mayfly.vmm.arch.x86_64.cpu import BOOT_CS
from mayfly.vmm.config import Channel, MachineConfig
from tests.kit import tiny
from tests.kit.api_fakes import install_toys
from tests.kit.moving_kit import SAY, Lines, cold, move
from tests.kit.scale import patience

pytestmark = [pytest.mark.kvm, pytest.mark.usefixtures("no_leaks")]

IDT, CLOCK, FIRED = 0x31_0000, 0x31_1000, 0x31_2000
VECTOR = 0x40
APIC_BASE, X2APIC_EOI, X2APIC_SPURIOUS, X2APIC_TIMER, TSC_DEADLINE = 0x1B, 0x80B, 0x80F, 0x832, 0x6E0
"""Intel SDM volume 3A, table 11-6, and volume 4, 2.1."""
SYSTEM_TIME = 0x4B56_4D01
"""Linux virt/kvm/x86/msr.rst: MSR_KVM_SYSTEM_TIME_NEW."""
BAD_TSC, BAD_CLOCK, BAD_EARLY, BAD_TWICE = range(0xFFFF_FFF0, 0xFFFF_FFF4)
TICKS = 60_000_000
"""Of the time-stamp counter to each timer: some 20 ms."""
MOVES = 15


def wrmsr(msr: int, value: int) -> str:
    return f"mov ecx, {msr:#x}\nxor edx, edx\nmov eax, {value:#x}\nwrmsr\n"


TIMING = f"""
        cli
        mov esp, 0x400000
        lea rax, [rip + fired]
        mov edi, {IDT + 16 * VECTOR}
        mov [rdi], ax
        mov word ptr [rdi + 2], {BOOT_CS}
        mov word ptr [rdi + 4], 0x8e00
        shr eax, 16
        mov [rdi + 6], ax
        lidt [idtr]
        mov ecx, {APIC_BASE}
        rdmsr
        or eax, 0xc00
        wrmsr
        {wrmsr(X2APIC_SPURIOUS, 0x1FF)}
        {wrmsr(X2APIC_TIMER, 2 << 17 | VECTOR)}
        {wrmsr(SYSTEM_TIME, CLOCK | 1)}
        xor ebx, ebx
        xor ebp, ebp
        xor r12d, r12d
arm:    inc ebx
        call counter
        add rax, {TICKS}
        mov r13, rax
        mov rdx, rax
        shr rdx, 32
        mov ecx, {TSC_DEADLINE}
        wrmsr
wait:   sti
        nop
        nop
        cli
        call counter
        mov esi, {BAD_TSC}
        cmp rax, rbp
        jb bad
        mov rbp, rax
        call clock
        mov esi, {BAD_CLOCK}
        cmp rax, r12
        jb bad
        mov r12, rax
        mov esi, {BAD_TWICE}
        cmp [{FIRED}], ebx
        ja bad
        jb wait
        mov esi, ebx
        call say
        jmp arm
fired:  inc dword ptr [{FIRED}]
        {wrmsr(X2APIC_EOI, 0)}
        call counter
        mov esi, {BAD_EARLY}
        cmp rax, r13
        jb bad
        mov rax, [rsp]
        mov rsp, [rsp + 24]
        jmp rax
bad:    mov r15d, esi
1:      mov esi, r15d
        call say
        jmp 1b
counter: rdtsc
        shl rdx, 32
        or rax, rdx
        ret
clock:  mov r8d, [{CLOCK}]
        test r8d, 1
        jnz clock
        call counter
        sub rax, [{CLOCK + 8}]
        movsx ecx, byte ptr [{CLOCK + 28}]
        test ecx, ecx
        js 1f
        shl rax, cl
        jmp 2f
1:      neg ecx
        shr rax, cl
2:      mov edx, [{CLOCK + 24}]
        mul rdx
        shrd rax, rdx, 32
        add rax, [{CLOCK + 16}]
        cmp r8d, [{CLOCK}]
        jne clock
        ret
        {SAY}
idtr:   .word {16 * VECTOR + 15}
        .quad {IDT}
"""


def test_clocks_do_not_go_back_and_timers_fire_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest waits for a timer nearly all the time, so most moves find one set."""
    install_toys(monkeypatch, tmp_path / "data")
    machine = MachineConfig(kernel=str(tiny.build(tmp_path, TIMING)), memory=16 * MIB, channel=Channel.SERIAL)
    wanted = Wanted(image=Images().find("toy"), machine=machine, timeout_s=60.0)
    lines = Lines(step=1)

    async def script() -> None:
        spawner = Spawner(Zygote.start)
        try:
            guest = await cold(spawner, wanted)
            for _ in range(MOVES):
                await lines.more(guest.process, 2)
                moved = await move(spawner, guest, wanted)
                await lines.rest(guest, spawner)
                await moved.process.resume()
                guest = moved
            await lines.more(guest.process, 2)
        finally:
            await spawner.close()

    asyncio.run(asyncio.wait_for(script(), patience(60)))
    assert lines.seen == list(range(1, len(lines.seen) + 1))
