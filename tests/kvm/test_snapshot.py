"""Snapshots of tiny guests on the real /dev/kvm: bases, diffs and chains of them; what goes on is
what was stopped, to the byte.
"""

import base64
import contextlib
import itertools
import json
import random
import shutil
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mayfly.errors import SnapshotError
from mayfly.files import sync
from mayfly.protocol.control import Prefault
from mayfly.protocol.pages import WorkingSet, unpack_working_set
from mayfly.protocol.report import End
from mayfly.vmm.config import Layer
from mayfly.vmm.kvm._kvm import ffi
from mayfly.vmm.kvm.mapping import Mapping
from mayfly.vmm.snapshot import MEMORY, PAGES, STATE, WORKING_SET
from mayfly.vmm.snapshot.files import Layers
from mayfly.vmm.snapshot.memory import working_set
from tests.kit.scale import scaled
from tests.kit.tiny import RESET, Running, build, run_and_save, start
from tests.kvm.test_machine import ECHO

pytestmark = pytest.mark.kvm

MEMORY_SIZE = 16 << 20
WRITES_BASE, WRITES_MASK = 0x40_0000, 0x7F_FFF8
BURST = 64
SPIN = "1: jmp 1b\n"
BAD_XCRS = base64.b64encode(b"\xff" * ffi.sizeof("struct kvm_xcrs")).decode()
"""More registers than there are (api.rst 4.46)."""


def workload(seed: int, bursts: int) -> str:
    """Writes numbers of a xorshift generator to places that they name, every eighth time zero; says
    'x' after every burst, then resets.
    """
    return f"""
        mov rbx, {seed}
        mov rcx, {bursts * BURST}
next:   mov rax, rbx
        shl rax, 13
        xor rbx, rax
        mov rax, rbx
        shr rax, 7
        xor rbx, rax
        mov rax, rbx
        shl rax, 17
        xor rbx, rax
        mov rdi, rbx
        and rdi, {WRITES_MASK}
        mov rax, rbx
        test rbx, 0x70000000
        jnz store
        xor rax, rax
store:  mov [rdi + {WRITES_BASE}], rax
        dec rcx
        test rcx, {BURST - 1}
        jnz next
        mov dx, 0x3f8
        mov al, 'x'
        out dx, al
        test rcx, rcx
        jnz next
        {RESET}
    """


def expected(seed: int, bursts: int) -> bytes:
    """What the workload leaves in the memory that it writes to."""
    memory = bytearray(WRITES_MASK + 8)
    mask = (1 << 64) - 1
    number = seed
    for _ in range(bursts * BURST):
        number ^= number << 13 & mask
        number ^= number >> 7
        number ^= number << 17 & mask
        struct.pack_into("<Q", memory, number & WRITES_MASK, number if number & 0x7000_0000 else 0)
    return bytes(memory)


def content(running: Running) -> bytes:
    return running.read(0, MEMORY_SIZE)


def laid(chain: tuple[Layer, ...]) -> bytes:
    """The memory that a chain of snapshots stands for."""
    opened = Layers(chain, None)
    with Mapping(MEMORY_SIZE) as mapping:
        opened.lay_over(mapping)
        opened.close()
        return bytes(mapping.view)


@pytest.mark.parametrize("seed", range(scaled(200)))
def test_base_and_diffs_are_the_machine_that_was_stopped(started: list[Running], tmp_path: Path, seed: int) -> None:
    """A random workload, stopped at random points: each chain, with layers mapped or copied, has
    the machine's memory of that moment to the byte, and in the end memory and console are those of
    a workload that was never stopped."""
    chance = random.Random(seed)
    bursts = chance.randint(4, 30)
    stops = sorted(chance.sample(range(1, bursts), chance.randint(1, 3)))
    kernel = build(tmp_path, workload(seed + 1, bursts))
    chain: tuple[Layer, ...] = ()
    console = b""
    for stop in stops:
        folder = tmp_path / f"at-{stop}"
        running = Running(kernel, restore=chain)
        written = run_and_save(running, stop - len(console), folder)
        chain = (*chain, Layer(folder=str(folder), copied=chance.random() < 0.5))
        assert laid(chain) == content(running)
        assert written < 9 << 20
        console += running.console
        running.close()
    last = Running(kernel, restore=chain)
    started.append(last)
    assert last.run() is End.RESET
    assert last.read(WRITES_BASE, WRITES_MASK + 8) == expected(seed + 1, bursts)
    assert console + last.console == b"x" * bursts


def saved(started: list[Running], tmp_path: Path, source: str, said: int, **options: Any) -> str:
    """The folder of a snapshot of this guest, taken when it has said so many bytes on its
    console.
    """
    folder = tmp_path / "snapshot"
    run_and_save(start(started, tmp_path, source, **options), said, folder)
    return str(folder)


def test_a_diff_holds_what_has_changed_and_no_more(started: list[Running], tmp_path: Path) -> None:
    touch = "mov byte ptr [0x500000], 0\nmov byte ptr [0x600000], 0\n"  # the page tables' own bits are set by that
    touch += "mov dx, 0x3f8\nout dx, al\nmov byte ptr [0x500123], 7\nmov byte ptr [0x600000], 0\nout dx, al\n" + SPIN
    base = saved(started, tmp_path, touch, 1)
    folder = tmp_path / "diff"
    running = Running(tmp_path / "tiny.elf", restore=(base,))
    started.append(running)
    assert run_and_save(running, 1, folder) == 4096
    assert (folder / PAGES).read_bytes() == struct.pack("<QQ", 0x500, 1)
    assert (folder / MEMORY).stat().st_size == MEMORY_SIZE
    assert (folder / MEMORY).stat().st_blocks * 512 <= 16384


def test_what_a_restored_machine_reads_is_noted_and_mapped_ahead(started: list[Running], tmp_path: Path) -> None:
    fill = "".join(f"mov byte ptr [{page << 12:#x}], 1\n" for page in range(0x500, 0x540))
    use = "mov al, [0x505000]\nmov al, [0x507000]\n" + "".join(f"mov byte ptr [{page << 12:#x}], 2\n" for page in (0x506, 0x53E, 0x900))
    touch = f"mov dx, 0x3f8\nout dx, al\n{use}out dx, al\n{SPIN}"
    base = saved(started, tmp_path, fill + touch, 1)
    assert (Path(base) / WORKING_SET).read_bytes() == b""
    sync(Path(base) / MEMORY)
    folder = tmp_path / "diff"
    running = Running(tmp_path / "tiny.elf", restore=(base,), page_by_page=True)
    started.append(running)
    run_and_save(running, 1, folder)
    noted = unpack_working_set((folder / WORKING_SET).read_bytes(), MEMORY_SIZE)
    reads, writes = ({page for first, count in runs for page in range(first, first + count)} for runs in noted)
    assert {0x505, 0x507} <= reads
    assert {0x506, 0x53E, 0x900} <= writes
    assert 0x901 not in writes  # as it would be of a huge page
    assert not reads & writes
    assert max(reads) < 0x600  # a diff's few pages are mapped then, not copied, which would count as written
    chain = (base, Layer(folder=str(folder), working_set=True))
    restored = Running(tmp_path / "tiny.elf", restore=chain)
    started.append(restored)

    def stop_when_mapped() -> None:
        if restored.machine.processors.threads[0].exits["interrupted"]:
            restored.machine.finish(End.STOPPED)
        restored.loop.call_later(0.01, stop_when_mapped)

    def pre_fault() -> None:
        restored.machine.carry_out(Prefault(), ())

    restored.loop.call_later(0.01, pre_fault)
    restored.loop.call_later(0.01, stop_when_mapped)
    assert restored.machine.run() is End.STOPPED
    assert restored.machine.exits()["interrupted"] == 1
    assert restored.read(0x53E000, 1) == b"\2"
    shutil.copy(folder / WORKING_SET, base)
    for eager in (False, True):
        running = Running(tmp_path / "tiny.elf", restore=(Layer(folder=base, eager=eager),))
        started.append(running)
        layers, mapping = running.machine.layers, running.machine.mapping
        ahead = {page for first, count in layers.eager.all for page in range(first, first + count)}
        # What is not of the base is free memory.
        assert (ahead >= (reads | writes) - {0x900}, 0x900 in ahead, layers.working_set) == (eager, False, [])
        own = {page for first, count in working_set(layers.pagemap, mapping).written for page in range(first, first + count)}
        assert own & {*range(0x500, 0x540)} == ({0x506, 0x53E} if eager else set())
        assert {running.read(page << 12, 1) for page in (reads | writes) & {*range(0x500, 0x540)}} == {b"\1"}


def test_only_the_working_sets_that_were_asked_for_are_mapped_ahead(started: list[Running], tmp_path: Path) -> None:
    base = saved(started, tmp_path, "mov dx, 0x3f8\nout dx, al\n" + SPIN, 1)
    diff = shutil.copytree(base, tmp_path / "diff")
    noted = {base: (5, 2), str(diff): (3, 1)}
    for folder, run in noted.items():
        (Path(folder) / WORKING_SET).write_bytes(WorkingSet([run], [(9, 1)]).pack())
    for asked in itertools.product((False, True), repeat=2):
        layers = tuple(Layer(folder=folder, working_set=mapped) for folder, mapped in zip(noted, asked, strict=True))
        with contextlib.closing(Layers(layers, None)) as opened:
            assert opened.working_set == [noted[layer.folder] for layer in layers if layer.working_set]


def test_a_copied_snapshot_is_not_needed_any_more(started: list[Running], tmp_path: Path) -> None:
    """What is mapped from a file that becomes shorter cannot be read."""
    bursts = 8
    kernel = build(tmp_path, workload(1, bursts))
    first, second = tmp_path / "first", tmp_path / "second"
    running = Running(kernel)
    started.append(running)
    run_and_save(running, 3, first)
    running = Running(kernel, restore=(str(first),))
    started.append(running)
    run_and_save(running, 3, second)
    again = Running(kernel, restore=[Layer(folder=str(folder), copied=True) for folder in (first, second)])
    started.append(again)
    for folder in (first, second):
        (folder / MEMORY).open("wb").close()
    assert again.run() is End.RESET
    assert again.read(WRITES_BASE, WRITES_MASK + 8) == expected(1, bursts)


def test_what_the_host_writes_belongs_to_a_snapshot(started: list[Running], tmp_path: Path) -> None:
    """Devices write to guest memory too, which KVM's own log of dirty pages does not show."""
    base = saved(started, tmp_path, "mov dx, 0x3f8\nout dx, al\nout dx, al\n" + SPIN, 1)
    folder = tmp_path / "diff"
    running = Running(tmp_path / "tiny.elf", restore=(base,))
    started.append(running)
    running.machine.mapping.view[0x70_0000:0x70_000D] = b"from a device"
    run_and_save(running, 1, folder)
    assert laid((Layer(folder=base), Layer(folder=str(folder))))[0x70_0000:][:13] == b"from a device"


STRING = (
    """
        lea rsi, [text]
        mov ecx, 9
        mov dx, 0x3f8
        cld
        rep outsb
        mov al, '!'
        out dx, al
        """
    + RESET
    + """
text:   .ascii "123456789"
"""
)


@pytest.mark.parametrize("said", range(1, 11))
def test_an_access_under_way_is_neither_lost_nor_repeated(started: list[Running], tmp_path: Path, said: int) -> None:
    """`rep outsb` may be one exit or nine; either way each byte is said once, on this side of the
    snapshot or the other.
    """
    running = start(started, tmp_path, STRING)
    run_and_save(running, said, tmp_path / "snapshot")
    again = Running(tmp_path / "tiny.elf", restore=(str(tmp_path / "snapshot"),))
    started.append(again)
    assert again.run() is End.RESET
    assert running.console + again.console == b"123456789!"


def test_registers_and_vector_registers_go_along(started: list[Running], tmp_path: Path) -> None:
    source = f"""
        mov rax, cr4
        or rax, 0x600
        mov cr4, rax
        movdqu xmm7, [number]
        mov r15, 0x99
        mov dx, 0x3f8
        out dx, al
        movdqu [0x500000], xmm7
        add [0x500000], r15
        {RESET}
number: .quad 0x1122334455667788, 0
    """
    folder = saved(started, tmp_path, source, 1)
    again = Running(tmp_path / "tiny.elf", restore=(folder,))
    started.append(again)
    assert again.run() is End.RESET
    assert int.from_bytes(again.read(0x50_0000, 8), "little") == 0x1122334455667788 + 0x99


def test_the_clock_goes_on_where_it_stopped(started: list[Running], tmp_path: Path) -> None:
    """The time-stamp counter never goes back, and does not count the time in between."""
    source = f"""
        rdtsc
        mov [0x500000], eax
        mov [0x500004], edx
        mov dx, 0x3f8
        out dx, al
        rdtsc
        mov [0x500008], eax
        mov [0x50000c], edx
        {RESET}
    """
    folder = saved(started, tmp_path, source, 1)
    again = Running(tmp_path / "tiny.elf", restore=(folder,))
    started.append(again)
    assert again.run() is End.RESET
    before, after = struct.unpack("<QQ", again.read(0x50_0000, 16))
    assert before < after


def test_the_serial_channel_goes_on(started: list[Running], tmp_path: Path) -> None:
    def talk(sends: bytes, running: Running, end: Callable[[Running], None]) -> bytes:
        echoed = b""

        def exchange() -> None:
            nonlocal echoed
            ours.sendall(sends)
            while len(echoed) < len(sends):
                echoed += ours.recv(4096)
            end(running)

        talker = threading.Thread(target=exchange)
        talker.start()
        running.machine.run()
        talker.join()
        return echoed

    folder = tmp_path / "snapshot"
    ours, theirs = socket.socketpair()
    with ours, theirs:
        record: list[int] = []
        running = start(started, tmp_path, ECHO, channel=theirs)
        save = running.loop.add_event(lambda: record.append(running.save(folder)))
        assert talk(b"before", running, lambda it: save()) == b"before"
        assert running.machine.processors.end is End.SAVED
    ours, theirs = socket.socketpair()
    with ours, theirs:
        again = Running(tmp_path / "tiny.elf", channel=theirs, restore=(str(folder),))
        started.append(again)
        assert talk(b"and after", again, lambda it: it.machine.finish(End.STOPPED)) == b"and after"


@pytest.mark.parametrize("processors", [1, 2])
def test_all_processors_go_on(started: list[Running], tmp_path: Path, processors: int) -> None:
    folder = saved(started, tmp_path, "mov dx, 0x3f8\nout dx, al\nout dx, al\n" + RESET, 1, cpus=processors)
    again = Running(tmp_path / "tiny.elf", restore=(folder,), cpus=processors)
    started.append(again)
    assert again.run() is End.RESET
    assert len(again.console) == 1


def damage_list(folder: Path) -> None:
    (folder / PAGES).write_bytes((folder / PAGES).read_bytes()[:-3])


def damage_order(folder: Path) -> None:
    (folder / PAGES).write_bytes(struct.pack("<QQQQ", 8, 1, 4, 1))


def damage_range(folder: Path) -> None:
    (folder / PAGES).write_bytes(struct.pack("<QQ", MEMORY_SIZE // 4096, 1))


def damage_memory(folder: Path) -> None:
    with (folder / MEMORY).open("r+b") as file:
        file.truncate(MEMORY_SIZE - 4096)


def damage_state(folder: Path) -> None:
    (folder / STATE).write_text((folder / STATE).read_text()[:-20])


def damage_parts(folder: Path) -> None:
    (folder / STATE).write_text((folder / STATE).read_text().replace('"uart0"', '"uart7"'))


def damage_identity(folder: Path) -> None:
    (folder / STATE).write_text((folder / STATE).read_text().replace('"identity":"', '"identity":"0'))


def damage_processors(folder: Path) -> None:
    edit_state(folder, lambda state: state["kvm"]["vcpus"].pop())


def damage_register(folder: Path) -> None:
    edit_state(folder, lambda state: state["kvm"]["vcpus"][0].update(xcrs=BAD_XCRS))


def cut_vector_registers(folder: Path) -> None:
    """What lies behind them in this process's memory must not become the guest's registers."""
    edit_state(folder, lambda state: state["kvm"]["vcpus"][0].update(xsave=state["kvm"]["vcpus"][0]["xsave"][: 576 * 4 // 3]))


def place_initramfs(folder: Path) -> None:
    """Mapped there, a file would lie over other memory of this process."""
    edit_state(folder, lambda state: state.update(initrd_offset=-4096))


def turn_on_virtualization(folder: Path) -> None:
    """CR4.VMXE (Intel) and EFER.SVME (AMD), which no guest here may set."""

    def edit(state: Any) -> None:
        vcpu = state["kvm"]["vcpus"][0]
        sregs: Any = ffi.from_buffer("struct kvm_sregs *", bytearray(base64.b64decode(vcpu["sregs"])))
        sregs.cr4 |= 1 << 13
        sregs.efer |= 1 << 12
        vcpu["sregs"] = base64.b64encode(ffi.buffer(sregs)).decode()

    edit_state(folder, edit)


def offer_features(folder: Path) -> None:
    more = [[1, 0, 0, 0, 0, 0xFFFF_FFFF, 0xFFFF_FFFF]]
    edit_state(folder, lambda state: state["kvm"]["vcpus"][0].update(cpuid=more))


def age_part(folder: Path) -> None:
    edit_state(folder, lambda state: state["parts"]["uart0"].update(version=0))


def age_state(folder: Path) -> None:
    edit_state(folder, lambda state: state.update(version=0))


def edit_state(folder: Path, edit: Callable[[Any], object]) -> None:
    state = json.loads((folder / STATE).read_text())
    edit(state)
    (folder / STATE).write_text(json.dumps(state))


def remove_memory(folder: Path) -> None:
    (folder / MEMORY).unlink()


DAMAGES = (
    (damage_list, "list of pages"),
    (damage_order, "not in order"),
    (damage_range, "pages"),
    (damage_memory, "memory has"),
    (damage_state, "damaged: state"),
    (damage_parts, "parts .*uart7"),
    (damage_identity, "another processor"),
    (damage_processors, "vcpus has 0 items"),
    (damage_register, "does not take"),
    (cut_vector_registers, "xsave has 576 bytes"),
    (place_initramfs, "initrd_offset"),
    (turn_on_virtualization, "does not take"),
    (offer_features, "kvm.*unknown field `cpuid`"),
    (age_state, "state.version"),
    (age_part, "uart0.version"),
    (remove_memory, "cannot be read"),
)


def test_a_processor_without_xsave_goes_on(started: list[Running], tmp_path: Path) -> None:
    """KVM gives no XCRs there, and takes none: EINVAL."""
    folder = Path(saved(started, tmp_path, "mov dx, 0x3f8\nout dx, al\nout dx, al\n" + RESET, 1))
    none = base64.b64encode(bytes(ffi.sizeof("struct kvm_xcrs"))).decode()
    edit_state(folder, lambda state: state["kvm"]["vcpus"][0].update(xcrs=none))
    again = Running(tmp_path / "tiny.elf", restore=(str(folder),))
    started.append(again)
    assert again.run() is End.RESET


def test_the_features_are_the_same_after_a_restore(started: list[Running], tmp_path: Path) -> None:
    read = "mov eax, 1\ncpuid\n"
    source = f"{read}mov [0x500000], ecx\nmov dx, 0x3f8\nout dx, al\n{read}mov [0x500004], ecx\n{RESET}"
    folder = saved(started, tmp_path, source, 1)
    again = Running(tmp_path / "tiny.elf", restore=(folder,))
    started.append(again)
    assert again.run() is End.RESET
    before, after = struct.unpack("<II", again.read(0x50_0000, 8))
    assert before == after != 0


def test_what_is_not_whole_or_not_for_this_machine_is_refused(started: list[Running], tmp_path: Path) -> None:
    folder = Path(saved(started, tmp_path, "mov dx, 0x3f8\nout dx, al\n" + SPIN, 1))
    kernel = tmp_path / "tiny.elf"
    for damage, says in DAMAGES:
        copy = tmp_path / damage.__name__
        shutil.copytree(folder, copy)
        damage(copy)
        with pytest.raises(SnapshotError, match=says):
            Running(kernel, restore=(str(copy),))
    others: tuple[dict[str, Any], ...] = ({"memory": 32 << 20}, {"cpus": 2})
    for other in others:
        with pytest.raises(SnapshotError, match="machine with"):
            Running(kernel, restore=(str(folder),), **other)
    started.append(Running(kernel, restore=(str(folder),)))  # the one that was not damaged
