/* What x86-64 adds. */

struct kvm_regs {
    uint64_t rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags; ...;
};
struct kvm_segment {
    uint64_t base; uint32_t limit; uint16_t selector; uint8_t type, present, dpl, db, s, l, g, avl, unusable; ...;
};
struct kvm_pit_config { uint32_t flags; ...; };
struct kvm_dtable { uint64_t base; uint16_t limit; ...; };
struct kvm_sregs {
    struct kvm_segment cs, ds, es, fs, gs, ss, tr, ldt;
    struct kvm_dtable gdt, idt;
    uint64_t cr0, cr2, cr3, cr4, cr8, efer, apic_base;
    ...;
};
struct kvm_cpuid_entry2 {
    uint32_t function, index, flags, eax, ebx, ecx, edx; ...;
};
struct kvm_cpuid2 { uint32_t nent; struct kvm_cpuid_entry2 entries[]; ...; };
struct kvm_msr_entry { uint32_t index; uint64_t data; ...; };
struct kvm_msrs { uint32_t nmsrs; struct kvm_msr_entry entries[]; ...; };

struct kvm_msr_filter_range { uint32_t flags; uint32_t nmsrs; uint32_t base; uint8_t *bitmap; ...; };
struct kvm_msr_filter { uint32_t flags; struct kvm_msr_filter_range ranges[16]; ...; };

static void host_cpuid(uint32_t leaf, uint32_t subleaf, uint32_t registers[4]);

struct kvm_xcrs { ...; };
struct kvm_debugregs { ...; };
struct kvm_lapic_state { ...; };
struct kvm_vcpu_events { ...; };
struct kvm_mp_state { uint32_t mp_state; ...; };
struct kvm_irqchip { uint32_t chip_id; ...; };
struct kvm_clock_data { uint64_t clock; uint32_t flags; ...; };
struct kvm_msr_list { uint32_t nmsrs; uint32_t indices[]; ...; };
