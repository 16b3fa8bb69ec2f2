"""Build `mayfly.vmm.kvm._kvm`, for setup.py or by hand: python vmm/kvm/build_kvm.py.

With --c ARCH FILE only the C source for that architecture is written, for a cross-compiler.
"""

import platform
import sys
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent

SOURCE = """
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>

#ifndef KVM_PRE_FAULT_MEMORY /* of Linux 6.11; this machine's headers may be older than its kernel */
struct kvm_pre_fault_memory { uint64_t gpa; uint64_t size; uint64_t flags; uint64_t padding[5]; };
#define KVM_PRE_FAULT_MEMORY _IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)
#define KVM_CAP_PRE_FAULT_MEMORY 236
#endif

/* Whether each of `count` pages is the process's own (present or swapped, and of no file: pagemap's bits 63, 62 and 61) and has another
   content than in `before`. In C, as a loop in Python takes seconds for a guest's memory. */
static void differing_pages(const uint64_t *pagemap, const char *now, const char *before, size_t count, uint8_t *differs)
{
    for (size_t page = 0; page < count; page++)
        differs[page] = pagemap[page] >> 62 && !(pagemap[page] >> 61 & 1) && memcmp(now + page * 4096, before + page * 4096, 4096);
}
static void zero_pages(const char *memory, size_t count, uint8_t *zero)
{
    for (size_t page = 0; page < count; page++, memory += 4096)
        zero[page] = !*memory && !memcmp(memory, memory + 1, 4095);
}
/* Have the kernel note writes to pages (userfaultfd(2), asynchronous: of Linux 6.7, on arm64 6.10); the descriptor that ends it,
   or -errno. */
static int track_writes(const char *memory, size_t size)
{
    struct uffdio_api api = {.api = UFFD_API, .features = 1 << 15}; /* UFFD_FEATURE_WP_ASYNC; headers may be older */
    struct uffdio_register range = {.range = {(uintptr_t)memory, size}, .mode = UFFDIO_REGISTER_MODE_WP};
    int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | 1); /* UFFD_USER_MODE_ONLY */
    if (fd < 0)
        return -errno;
    if (ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &range)) {
        int error = errno;
        close(fd);
        return -error;
    }
    return fd;
}
/* The pages from *at to `end` that are the process's own and were written since the last call: of each run begin, end, categories
   (PAGEMAP_SCAN, Linux admin-guide/mm/pagemap.rst). *at becomes where that stopped. How many runs, or -errno. */
static long written_pages(int pagemap, uint64_t *at, uint64_t end, uint64_t *runs, size_t room)
{
    const uint64_t written = 1 << 1, file = 1 << 2, present = 1 << 3, swapped = 1 << 4, zero = 1 << 5;
    struct { uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages, inverted, mask, anyof, returned; } scan = {
        .size = sizeof scan, .flags = 1 | 2 /* WP_MATCHING, CHECK_WPASYNC */, .start = *at, .end = end, .vec = (uintptr_t)runs,
        .vec_len = room, .inverted = file | zero, .mask = written | file | zero, .anyof = present | swapped, .returned = written,
    };
    long found = ioctl(pagemap, _IOC(_IOC_READ | _IOC_WRITE, 'f', 16, sizeof scan), &scan);
    *at = scan.walk_end;
    return found < 0 ? -errno : found;
}
/* syscall(2), whose arguments are whole registers. */
static long system_call(long number, intptr_t a, intptr_t b, intptr_t c, intptr_t d, intptr_t e)
{
    return syscall(number, a, b, c, d, e);
}
/* Memory order between a device's thread and a driver on another processor (virtio 1.2, 2.7.8.2 and 2.7.13.3). */
static void fence_acquire(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
static void fence_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
static void fence_full(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
"""
SOURCE += (HERE / "cdef/chains.c").read_text() + (HERE / "cdef/pump.c").read_text()

ARM_REGISTERS = {
    **{name: f"CORE(regs.{name.lower()})" for name in ("PC", "SP", "PSTATE")},
    **{f"X{number}": f"CORE(regs.regs[{number}])" for number in (0, 1, 2, 3, 29, 30)},
    "ELR_EL1": "CORE(elr_el1)",
    **{name: f"ARM64_SYS_REG(3, 0, {place}, 0)" for name, place in (("ESR_EL1", "5, 2"), ("FAR_EL1", "6, 0"), ("VBAR_EL1", "12, 0"))},
}

SOURCES = {
    "x86_64": """
#include <cpuid.h>
static void host_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t registers[4])
{
    __cpuid_count(leaf, subleaf, registers[0], registers[1], registers[2], registers[3]);
}
""",
    "aarch64": """
#include <stddef.h>
#define CORE(field) (KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | KVM_REG_ARM_CORE_REG(field))
"""
    + "".join(f"#define REG_{name} {where}\n" for name, where in ARM_REGISTERS.items()),
}

CONSTANTS = {
    "common": """
        PROT_READ PROT_WRITE MAP_SHARED MAP_PRIVATE MAP_ANONYMOUS MAP_NORESERVE MAP_FIXED MADV_HUGEPAGE MADV_RANDOM
        SYS_setns SYS_unshare SYS_capset SYS_mount SYS_umount2 SYS_pivot_root
        PR_SET_PDEATHSIG PR_SET_NO_NEW_PRIVS PR_SET_DUMPABLE
        KVM_API_VERSION KVM_CAP_PRE_FAULT_MEMORY KVM_IOEVENTFD_FLAG_DATAMATCH KVM_MEM_READONLY
        KVM_GET_API_VERSION KVM_CREATE_VM KVM_CHECK_EXTENSION KVM_GET_VCPU_MMAP_SIZE KVM_CREATE_VCPU KVM_SET_USER_MEMORY_REGION
        KVM_IRQFD KVM_IOEVENTFD KVM_RUN KVM_CREATE_DEVICE KVM_SET_DEVICE_ATTR KVM_GET_DEVICE_ATTR
        KVM_PRE_FAULT_MEMORY
        CHAINS PIECES START LARGEST_PACKET LIKE INTERRUPT AGAIN UNUSUAL READY
    """,
    "x86_64": """
        KVM_CREATE_IRQCHIP KVM_GET_REGS KVM_SET_REGS KVM_SET_TSS_ADDR KVM_SET_IDENTITY_MAP_ADDR KVM_CREATE_PIT2 KVM_GET_SUPPORTED_CPUID
        KVM_SET_CPUID2 KVM_GET_SREGS KVM_SET_SREGS KVM_SET_MSRS KVM_X86_SET_MSR_FILTER KVM_GET_CPUID2 KVM_GET_MSRS
        KVM_GET_MSR_INDEX_LIST KVM_GET_XSAVE KVM_GET_XSAVE2 KVM_SET_XSAVE KVM_GET_XCRS KVM_SET_XCRS KVM_GET_DEBUGREGS KVM_SET_DEBUGREGS
        KVM_GET_LAPIC KVM_SET_LAPIC KVM_GET_VCPU_EVENTS KVM_SET_VCPU_EVENTS KVM_GET_MP_STATE KVM_SET_MP_STATE KVM_GET_IRQCHIP
        KVM_SET_IRQCHIP KVM_GET_CLOCK KVM_SET_CLOCK KVM_KVMCLOCK_CTRL
        KVM_CAP_TSC_DEADLINE_TIMER KVM_CAP_X86_MSR_FILTER KVM_MSR_FILTER_READ KVM_MSR_FILTER_WRITE KVM_IRQCHIP_PIC_MASTER
        KVM_IRQCHIP_PIC_SLAVE KVM_IRQCHIP_IOAPIC KVM_CAP_XSAVE2
    """,
    "aarch64": """
        KVM_ARM_PREFERRED_TARGET KVM_ARM_VCPU_INIT KVM_GET_ONE_REG KVM_SET_ONE_REG KVM_GET_REG_LIST KVM_GET_MP_STATE KVM_SET_MP_STATE
        KVM_GET_VCPU_EVENTS KVM_SET_VCPU_EVENTS
        KVM_REG_SIZE_SHIFT KVM_REG_SIZE_MASK KVM_ARM_VCPU_POWER_OFF KVM_ARM_VCPU_PSCI_0_2 KVM_DEV_TYPE_ARM_VGIC_V2
        KVM_DEV_TYPE_ARM_VGIC_V3 KVM_DEV_ARM_VGIC_GRP_ADDR KVM_DEV_ARM_VGIC_GRP_NR_IRQS KVM_DEV_ARM_VGIC_GRP_CTRL
        KVM_DEV_ARM_VGIC_CTRL_INIT KVM_DEV_ARM_VGIC_GRP_DIST_REGS KVM_DEV_ARM_VGIC_GRP_REDIST_REGS KVM_DEV_ARM_VGIC_GRP_CPU_REGS
        KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO KVM_VGIC_V2_ADDR_TYPE_DIST KVM_VGIC_V2_ADDR_TYPE_CPU
        KVM_VGIC_V3_ADDR_TYPE_DIST KVM_VGIC_V3_ADDR_TYPE_REDIST
    """
    + "".join(f" REG_{name}" for name in ARM_REGISTERS),
}
"""Numbers that the compiler fills in."""


def make(arch: str) -> FFI:
    """The declarations and the C source for `arch`."""
    made = FFI()
    for part in ("common", arch):
        made.cdef((HERE / "cdef" / f"{part}.h").read_text() + "".join(f"#define {name} ...\n" for name in CONSTANTS[part].split()))
    made.set_source("mayfly.vmm.kvm._kvm", SOURCE + SOURCES[arch])
    return made


ffi = make(platform.machine())

if __name__ == "__main__":
    if sys.argv[1:2] == ["--c"]:
        make(sys.argv[2]).emit_c_code(sys.argv[3])
    else:
        ffi.compile(tmpdir=str(HERE.parents[1]), verbose=False)
