"""Kernel formats and boot data: what is parsed, and that nothing but BootError comes of a damaged
file.
"""

import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mayfly.errors import BootError
from mayfly.vmm.arch.x86_64 import hardware, layout
from mayfly.vmm.loader import Segment, boot_params, elf
from mayfly.vmm.loader.boot_params import E820_RAM, E820_RESERVED

GIB = 1 << 30


def vmlinux(*, machine: int = 62, entry: int = 0x100_0000, size: int = 0x100) -> bytes:
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = elf.HEADER.pack(ident, 2, machine, 1, entry, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = elf.PROGRAM_HEADER.pack(elf.PT_LOAD, 5, 0x1000, 0, 0x100_0000, size, size + 0x80, 0x1000)
    note = elf.PROGRAM_HEADER.pack(4, 4, 0, 0, 0, 0, 0, 4)
    return (header + load + note).ljust(0x1000, b"\0") + b"k" * size


def bz(*, version: int = 0x20F, xloadflags: int = 1) -> bytes:
    head = bytearray(0x1000)
    head[0x1F1] = 1
    struct.pack_into("<H", head, 0x1FE, 0xAA55)
    head[0x201] = 0x6A
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, version)
    struct.pack_into("<I", head, 0x22C, 0x7FFF_FFFF)
    struct.pack_into("<H", head, 0x236, xloadflags)
    struct.pack_into("<I", head, 0x238, 2047)
    struct.pack_into("<Q", head, 0x258, 0x100_0000)
    struct.pack_into("<I", head, 0x260, 0x200_0000)
    return bytes(head)


def test_a_vmlinux_has_its_load_segments_only() -> None:
    data = vmlinux()
    parsed = elf.parse(data, len(data))
    assert parsed.entry == 0x100_0000
    assert parsed.segments == (Segment(offset=0x1000, address=0x100_0000, size=0x100),)
    assert parsed.end == 0x100_0180


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not an ELF"),
        (vmlinux(machine=183), "machine 183"),
        (vmlinux(entry=0x99), "entry point 0x99"),
        (vmlinux()[:0x1010], "cut short"),
        (vmlinux().replace(b"\x7fELF\x02", b"\x7fELF\x01"), "not a 64-bit"),
    ],
)
def test_a_wrong_vmlinux_is_named(data: bytes, message: str) -> None:
    with pytest.raises(BootError, match=message):
        elf.parse(data, len(data))


def test_a_bzimage_enters_512_bytes_behind_its_load_address() -> None:
    parsed = boot_params.parse_bzimage(bz(), 100_000)
    assert (parsed.entry, parsed.segments, parsed.end) == (0x100_0200, (Segment(1024, 0x100_0000, 100_000 - 1024),), 0x300_0000)
    assert parsed.setup_header is not None
    assert len(parsed.setup_header) == 0x202 + 0x6A - 0x1F1


@pytest.mark.parametrize(
    ("data", "size", "message"),
    [
        (bz(version=0x20B), 9999, "2.11"),
        (bz(xloadflags=0), 9999, "64-bit"),
        (bz(), 1200, "cut short"),
        (bytes(4096), 4096, "not a bzImage"),
    ],
)
def test_a_wrong_bzimage_is_named(data: bytes, size: int, message: str) -> None:
    with pytest.raises(BootError, match=message):
        boot_params.parse_bzimage(data, size)


@settings(max_examples=300)
@given(
    st.sampled_from([vmlinux()[:0x1000], bz()]),
    st.lists(st.tuples(st.integers(0, 0xFFF), st.integers(0, 255)), max_size=20),
    st.integers(0, 4096),
)
def test_a_damaged_kernel_gives_a_boot_error_or_a_kernel(data: bytes, changes: list[tuple[int, int]], length: int) -> None:
    damaged = bytearray(data)
    for offset, value in changes:
        damaged[offset] = value
    with contextlib.suppress(BootError):
        elf.parse(bytes(damaged[:length]), length)
    with contextlib.suppress(BootError):
        boot_params.parse_bzimage(bytes(damaged[:length]), length)


def test_boot_params_hold_what_the_protocol_wants() -> None:
    page = boot_params.build(
        setup_header=None,
        cmdline=0x2_0000,
        initrd=(0x1_2345_6000, 0x789),
        setup_data=0x8000,
        memory_map=[(0, 0x9_FC00, E820_RAM), (0xFFFB_C000, 0x4000, E820_RESERVED)],
    )
    assert len(page) == 4096
    assert page[0x1FE:0x206] == b"\x55\xaa\0\0HdrS"
    assert struct.unpack_from("<I", page, 0x228) == (0x2_0000,)
    assert struct.unpack_from("<II", page, 0x218) == (0x2345_6000, 0x789)
    assert struct.unpack_from("<II", page, 0x0C0) == (1, 0)
    assert struct.unpack_from("<Q", page, 0x250) == (0x8000,)
    assert page[0x1E8] == 2
    assert struct.unpack_from("<QQI", page, 0x2D0 + 20) == (0xFFFB_C000, 0x4000, 2)


def test_a_bzimages_own_header_is_kept() -> None:
    parsed = boot_params.parse_bzimage(bz(), 100_000)
    page = boot_params.build(setup_header=parsed.setup_header, cmdline=1, initrd=(0, 0), setup_data=2, memory_map=[])
    assert struct.unpack_from("<I", page, 0x260) == (0x200_0000,)


def test_the_seed_ends_the_list() -> None:
    assert boot_params.rng_seed(b"x" * 32) == struct.pack("<QII", 0, 9, 32) + b"x" * 32


@pytest.mark.parametrize("cpus", [1, 2, 64])
def test_the_mp_table_adds_up(cpus: int) -> None:
    table = hardware.mp_table(cpus)
    pointer, config = table[:16], table[16:]
    assert pointer[:4] == b"_MP_"
    assert struct.unpack_from("<I", pointer, 4) == (layout.MP_TABLE + 16,)
    assert sum(pointer) % 256 == 0
    assert config[:4] == b"PCMP"
    assert struct.unpack_from("<H", config, 4) == (len(config),)
    assert sum(config) % 256 == 0
    processors = [config[44 + 20 * index : 64 + 20 * index] for index in range(cpus)]
    assert [processor[1] for processor in processors] == list(range(cpus))
    assert [processor[3] & 2 for processor in processors] == [2] + [0] * (cpus - 1)


def test_ram_leaves_the_hole_free() -> None:
    assert layout.ram_regions(GIB) == [(0, GIB)]
    assert layout.ram_regions(5 * GIB) == [(0, 3 * GIB), (4 * GIB, 2 * GIB)]
