"""Read a vmlinux's program headers (System V ABI, "Object Files" and "Program Loading")."""

import struct

from mayfly.errors import BootError
from mayfly.vmm.loader import Kernel, Segment

HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
# e_ident, e_type, e_machine, e_version, e_entry, e_phoff, e_shoff, e_flags,
# e_ehsize, e_phentsize, e_phnum, e_shentsize, e_shnum, e_shstrndx
PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")  # p_type, p_flags, p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
MAGIC = b"\x7fELF"
CLASS_64, LITTLE_ENDIAN = 2, 1
X86_64 = 62  # e_machine
PT_LOAD = 1
MAX_PROGRAM_HEADERS = 64


def parse(head: bytes, file_size: int) -> Kernel:
    """Parse a vmlinux's beginning, program headers included (a page is enough for Linux).

    Raises BootError: not a 64-bit little-endian ELF for x86-64, or segments are cut short.
    """
    if len(head) < HEADER.size or not head.startswith(MAGIC):
        raise BootError("the kernel is not an ELF file")
    ident, _, machine_code, _, entry, table, _, _, _, entry_size, count, *_ = HEADER.unpack_from(head)
    if ident[4] != CLASS_64 or ident[5] != LITTLE_ENDIAN:
        raise BootError("the kernel is not a 64-bit little-endian ELF file")
    if machine_code != X86_64:
        raise BootError(f"the kernel is for ELF machine {machine_code}, this host needs {X86_64} (x86-64)")
    if entry_size != PROGRAM_HEADER.size or not 0 < count <= MAX_PROGRAM_HEADERS or table + count * entry_size > len(head):
        raise BootError("the kernel's ELF program headers are damaged")
    segments, ends = [], []
    for index in range(count):
        p_type, _, offset, _, address, size, memory, _ = PROGRAM_HEADER.unpack_from(head, table + index * entry_size)
        if p_type != PT_LOAD:
            continue
        if offset + size > file_size or size > memory:
            raise BootError(f"the kernel file is cut short: a segment ends at byte {offset + size} of {file_size}")
        segments.append(Segment(offset, address, size))
        ends.append(address + memory)
    if not any(segment.address <= entry < end for segment, end in zip(segments, ends, strict=True)):
        raise BootError(f"the kernel's entry point {entry:#x} is in none of its segments")
    return Kernel(segments=tuple(segments), entry=entry, end=max(ends))
