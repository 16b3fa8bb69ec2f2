/* What both architectures use of <linux/kvm.h>. Sizes, offsets and numbers come from the compiler ("..."). */

int ioctl(int fd, unsigned long request, void *argument);
int fork(void);
static long system_call(long number, intptr_t, intptr_t, intptr_t, intptr_t, intptr_t);
int prctl(int option, unsigned long, unsigned long, unsigned long, unsigned long);
void *mmap(void *address, size_t length, int protection, int flags, int fd, int64_t offset);
int munmap(void *address, size_t length);
int madvise(void *address, size_t length, int advice);
static void differing_pages(const uint64_t *pagemap, const char *now, const char *before, size_t count, uint8_t *differs);
static void zero_pages(const char *memory, size_t count, uint8_t *zero);
static int track_writes(const char *memory, size_t size);
static long written_pages(int pagemap, uint64_t *at, uint64_t end, uint64_t *runs, size_t room);
static void fence_acquire(void);
static void fence_release(void);
static void fence_full(void);
static void *const MAP_FAILED;

struct iovec { void *iov_base; size_t iov_len; };
struct region { uint64_t base, size; char *at; };
struct ring {
    const struct region *regions; const char *descriptors; const uint16_t *available; uint16_t *used; uint16_t *counts;
    uint32_t region_count, size, indirect, event_idx; ...;
};
struct taken { uint32_t head, size, written, first, end; };
struct batch {
    uint32_t given, done, count, bad_head; uint64_t room; struct taken chains[...]; struct iovec pieces[...]; char starts[...][140]; ...;
};
struct passes { uint32_t count, next; ...; };
static uint32_t batch_take(struct batch *batch, const struct ring *ring, uint32_t most, uint32_t kind);
static void batch_give_back(struct batch *batch, const struct ring *ring);
static void passes_add(struct passes *passes, char *start, const char *mask, uint32_t least);
static uint32_t batch_send(struct batch *batch, const struct ring *ring, const struct passes *passes, int fd);
static uint32_t batch_receive(struct batch *batch, const struct ring *ring, int fd);
static void batch_complete(struct batch *batch, uint32_t size);
static long batch_read(const struct batch *batch, int fd);
static long batch_write(const struct batch *batch, uint32_t chain, int fd);
static void batch_copy(const struct batch *batch, uint32_t chain, uint32_t end, char *data, size_t size, int out);

struct ready { int32_t fd; uint32_t events; };
struct pump {
    struct batch *outgoing, *incoming; const struct ring *transmit, *receive; const struct passes *passes;
    int32_t tap, interrupt, transmit_kick, receive_kick; uint32_t on, kicks; ...;
};
static void pump_init(struct pump *pump);
static void pump_stop(struct pump *pump);
static long pump_wait(struct pump *pump, int epoll, int timeout_ms, struct ready *left);

struct kvm_userspace_memory_region {
    uint32_t slot; uint32_t flags; uint64_t guest_phys_addr; uint64_t memory_size; uint64_t userspace_addr; ...;
};
struct kvm_irqfd { uint32_t fd; uint32_t gsi; uint32_t flags; ...; };
struct kvm_ioeventfd { uint64_t datamatch; uint64_t addr; uint32_t len; int32_t fd; uint32_t flags; ...; };
struct kvm_create_device { uint32_t type; uint32_t fd; uint32_t flags; ...; };
struct kvm_device_attr { uint32_t flags; uint32_t group; uint64_t attr; uint64_t addr; ...; };
struct kvm_pre_fault_memory { uint64_t gpa; uint64_t size; uint64_t flags; ...; };
struct kvm_run {
    uint8_t immediate_exit;
    uint32_t exit_reason;
    union {
        struct { uint64_t hardware_entry_failure_reason; uint32_t cpu; } fail_entry;
        struct { uint8_t direction; uint8_t size; uint16_t port; uint32_t count; uint64_t data_offset; } io;
        struct { uint64_t phys_addr; uint8_t data[8]; uint32_t len; uint8_t is_write; } mmio;
        struct { uint32_t suberror; uint32_t ndata; uint64_t data[16]; } internal;
        struct { uint32_t type; uint32_t ndata; uint64_t data[16]; } system_event;
    };
    ...;
};
