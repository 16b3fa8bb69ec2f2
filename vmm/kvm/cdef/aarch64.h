/* What 64-bit Arm adds. */

struct kvm_vcpu_init { uint32_t target; uint32_t features[7]; ...; };
struct kvm_one_reg { uint64_t id; uint64_t addr; ...; };
/* A pointer to the kernel's __u64 is none to uint64_t, and an error for GCC since 14. */
struct kvm_reg_list { uint64_t n; unsigned long long reg[]; };
struct kvm_mp_state { uint32_t mp_state; ...; };
struct kvm_vcpu_events { ...; };
