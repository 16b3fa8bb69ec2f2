"""Build `mayfly.vmm.kvm._kvm`, for setup.py or by hand: python vmm/kvm/build_kvm.py.

With --c ARCH FILE only the C source for that architecture is written, for a cross-compiler.
"""

import platform
import sys
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent

SOURCE = """
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <linux/kvm.h>

#ifndef KVM_PRE_FAULT_MEMORY /* of Linux 6.11; this machine's headers may be older than its kernel */
struct kvm_pre_fault_memory { uint64_t gpa; uint64_t size; uint64_t flags; uint64_t padding[5]; };
#define KVM_PRE_FAULT_MEMORY _IOWR(KVMIO, 0xd5, struct kvm_pre_fault_memory)
#define KVM_CAP_PRE_FAULT_MEMORY 236
#endif

static int sys_ioctl(int fd, unsigned long request, uintptr_t argument) { return ioctl(fd, request, argument); }
static int sys_ioctl_pointer(int fd, unsigned long request, void *argument) { return ioctl(fd, request, argument); }
static void *sys_mmap(void *address, size_t length, int protection, int flags, int fd, int64_t offset)
{
    return mmap(address, length, protection, flags, fd, offset);
}
static int sys_munmap(void *address, size_t length) { return munmap(address, length); }
static int sys_madvise(void *address, size_t length, int advice) { return madvise(address, length, advice); }
/* Whether each of `count` pages is the process's own (present or swapped, and of no file: pagemap's bits 63, 62 and 61) and has another
   content than in `before`. In C, as a loop in Python takes seconds for a guest's memory. */
static void differing_pages(const uint64_t *pagemap, const char *now, const char *before, size_t count, uint8_t *differs)
{
    for (size_t page = 0; page < count; page++)
        differs[page] = pagemap[page] >> 62 && !(pagemap[page] >> 61 & 1) && memcmp(now + page * 4096, before + page * 4096, 4096);
}
/* Memory order between a device's thread and a driver on another processor (virtio 1.2, 2.7.8.2 and 2.7.13.3). */
static void fence_acquire(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }
static void fence_release(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
static void fence_full(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static int sys_prctl(int option, unsigned long argument) { return prctl(option, argument, 0, 0, 0); }
/* Landlock's scope of signals (landlock(7), of Linux 6.12); headers may be older. The numbers are the same on all architectures. */
static int sys_scope_signals(void)
{
    const uint64_t attributes[3] = {0, 0, 1 << 1}; /* files, network, scoped: LANDLOCK_SCOPE_SIGNAL */
    int result, ruleset = syscall(444, attributes, sizeof attributes, 0);
    if (ruleset < 0)
        return -1;
    result = syscall(446, ruleset, 0);
    close(ruleset);
    return result;
}
"""

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
#define REG_PC CORE(regs.pc)
#define REG_SP CORE(regs.sp)
#define REG_PSTATE CORE(regs.pstate)
#define REG_X0 CORE(regs.regs[0])
#define REG_X1 CORE(regs.regs[1])
#define REG_X2 CORE(regs.regs[2])
#define REG_X3 CORE(regs.regs[3])
#define REG_X29 CORE(regs.regs[29])
#define REG_X30 CORE(regs.regs[30])
#define REG_ELR_EL1 CORE(elr_el1)
#define REG_ESR_EL1 ARM64_SYS_REG(3, 0, 5, 2, 0)
#define REG_FAR_EL1 ARM64_SYS_REG(3, 0, 6, 0, 0)
#define REG_VBAR_EL1 ARM64_SYS_REG(3, 0, 12, 0, 0)
""",
}


def make(arch: str) -> FFI:
    """The declarations and the C source for `arch`."""
    made = FFI()
    made.cdef((HERE / "cdef" / "common.h").read_text() + (HERE / "cdef" / f"{arch}.h").read_text())
    made.set_source("mayfly.vmm.kvm._kvm", SOURCE + SOURCES[arch])
    return made


ffi = make(platform.machine())

if __name__ == "__main__":
    if sys.argv[1:2] == ["--c"]:
        make(sys.argv[2]).emit_c_code(sys.argv[3])
    else:
        ffi.compile(tmpdir=str(HERE.parents[1]), verbose=False)
