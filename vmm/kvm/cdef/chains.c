/* Chains of a virtqueue (virtio 1.2, 2.7) as pieces of memory for readv(2) and writev(2).

   The guest may rewrite its rings at any moment. So each head and descriptor is read once, and only that copy is checked and used: each
   buffer lies inside one region, each chain ends within the queue's size. Of a packet from the guest the start, which the caller looks at,
   is copied too, and the copy is what is sent. */
#include <sys/uio.h>

enum { CHAINS = 256, PIECES = 1024 /* IOV_MAX, readv(2) */, START = 140, LARGEST_PACKET = 65561, HEADER = 12, NUM_BUFFERS = 10 };
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 }; /* flags of a descriptor (virtio 1.2, 2.7.5) */
/* The faults: FAULTS in queue.py. */
enum { FINE, FULL, BAD_INDEX, BAD_HEAD, BAD_NEXT, BAD_INDIRECT, BAD_LENGTH, BAD_DIRECTION, BAD_ADDRESS, TOO_LONG };

struct region { uint64_t base, size; char *at; };
struct ring {
    const struct region *regions;
    const char *descriptors;
    const uint16_t *available; /* flags, index, head of each, used_event: for `word` */
    uint16_t *used;            /* flags, index, {head, length} of each, avail_event */
    uint16_t *counts;          /* of chains, free-running: our own, which queue.py has too */
    uint32_t region_count, size, indirect, event_idx;
};
enum { TAKEN, RETURNED, PUBLISHED }; /* counts */
struct taken { uint32_t head, size, written, first, end; }; /* a chain: of `size` bytes, in pieces [first, end) */
/* Chains in order: [given, done) are finished, [done, count) are not. */
struct batch {
    uint32_t given, done, count, bad_head;
    uint64_t room; /* bytes in [done, count) */
    struct taken chains[CHAINS];
    struct iovec pieces[PIECES];
    char starts[CHAINS][START];
};
typedef const volatile uint64_t __attribute__((aligned(1))) half; /* of a descriptor */

static uint16_t word(const struct ring *ring, uint32_t index)
{
    return ((const volatile uint16_t *)ring->available)[index];
}
static char *inside(const struct ring *ring, uint64_t address, uint64_t length)
{
    for (uint32_t i = 0; i < ring->region_count; i++) {
        uint64_t offset = address - ring->regions[i].base, size = ring->regions[i].size;
        if (offset <= size && length <= size - offset)
            return ring->regions[i].at + offset;
    }
    return NULL;
}
/* Put the buffers of the chain at `head`, all with WRITE or none (`kind`), into the free pieces from `first` on; what is wrong with it. */
static uint32_t walk(struct batch *batch, const struct ring *ring, uint32_t head, uint32_t kind, uint32_t first)
{
    const char *table = ring->descriptors;
    uint32_t entries = ring->size, index = head, nested = 0;
    uint64_t bytes = 0;
    for (uint32_t piece = first; piece < first + ring->size;) {
        if (index >= entries)
            return BAD_NEXT;
        half *descriptor = (half *)(table + 16 * (size_t)index);
        uint64_t address = descriptor[0], rest = descriptor[1];
        uint32_t length = rest, flags = rest >> 32 & 0xffff;
        char *at = inside(ring, address, length);
        if (flags & INDIRECT) {
            if (nested++ || !ring->indirect || flags & NEXT || !length || length % 16)
                return BAD_INDIRECT;
            if (!at)
                return BAD_ADDRESS;
            table = at, entries = length / 16, index = 0;
            continue;
        }
        bytes += length;
        if (!length || bytes > UINT32_MAX)
            return BAD_LENGTH;
        if ((flags & WRITE) != kind)
            return BAD_DIRECTION;
        if (!at)
            return BAD_ADDRESS;
        batch->pieces[piece++] = (struct iovec){at, length};
        if (!(flags & NEXT)) {
            batch->chains[batch->count] = (struct taken){head, bytes, 0, first, piece};
            return FINE;
        }
        index = rest >> 48;
    }
    return TOO_LONG;
}
/* Have a copy of the first bytes take their place in the chain: in the piece before what is left of its others, of which one is free. */
static void copy_start(struct batch *batch, struct taken *chain)
{
    char *start = batch->starts[chain - batch->chains];
    size_t copied = 0;
    for (; chain->first < chain->end; chain->first++) {
        struct iovec *from = &batch->pieces[chain->first];
        size_t part = from->iov_len < START - copied ? from->iov_len : START - copied;
        memcpy(start + copied, from->iov_base, part);
        copied += part;
        *from = (struct iovec){(char *)from->iov_base + part, from->iov_len - part};
        if (from->iov_len)
            break;
    }
    batch->pieces[--chain->first] = (struct iovec){start, copied};
}
/* Take up to `most` chains. It ends early when the batch is FULL, and before a bad chain, `bad_head`. */
static uint32_t batch_take(struct batch *batch, const struct ring *ring, uint32_t most, uint32_t kind)
{
    uint32_t gone = batch->given, freed;
    uint16_t *at = &ring->counts[TAKEN], offered = word(ring, 1) - *at;
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    if (offered + (uint16_t)(*at - ring->counts[RETURNED]) > ring->size) /* those that are out count too */
        return BAD_INDEX;
    if (kind && gone) { /* make room; starts do not move, so what is to be sent stays */
        freed = batch->chains[gone].first;
        memmove(batch->pieces, batch->pieces + freed, (batch->chains[batch->count - 1].end - freed) * sizeof *batch->pieces);
        memmove(batch->chains, batch->chains + gone, (batch->count - gone) * sizeof *batch->chains);
        batch->given = 0, batch->done -= gone, batch->count -= gone;
        for (uint32_t i = 0; i < batch->count; i++)
            batch->chains[i].first -= freed, batch->chains[i].end -= freed;
    }
    for (most = offered < most ? offered : most; most; most--) {
        uint32_t first = (batch->count ? batch->chains[batch->count - 1].end : 0) + !kind, fault;
        if (batch->count == CHAINS || first + ring->size > PIECES)
            return FULL;
        batch->bad_head = word(ring, 2 + *at % ring->size);
        if (batch->bad_head >= ring->size)
            return BAD_HEAD;
        if ((fault = walk(batch, ring, batch->bad_head, kind, first)))
            return fault;
        struct taken *chain = &batch->chains[batch->count++];
        batch->room += chain->size;
        ++*at;
        if (!kind)
            copy_start(batch, chain);
    }
    return FINE;
}
/* Give the finished chains back. */
static void batch_give_back(struct batch *batch, const struct ring *ring)
{
    uint32_t *elements = (uint32_t *)(ring->used + 2);
    for (; batch->given < batch->done; batch->given++) {
        uint32_t slot = 2 * (ring->counts[RETURNED]++ % ring->size);
        elements[slot] = batch->chains[batch->given].head;
        elements[slot + 1] = batch->chains[batch->given].written;
    }
    if (batch->given == batch->count)
        batch->given = batch->done = batch->count = batch->room = 0;
}
/* Show the driver what is given back; whether it wants an interrupt (virtio 1.2, 2.7.7). */
static uint32_t ring_publish(const struct ring *ring)
{
    uint16_t published = ring->counts[PUBLISHED], returned = ring->counts[RETURNED];
    if (published == returned)
        return 0;
    __atomic_thread_fence(__ATOMIC_RELEASE);
    *(volatile uint16_t *)&ring->used[1] = ring->counts[PUBLISHED] = returned;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!ring->event_idx)
        return !(word(ring, 0) & 1);
    return (uint16_t)(returned - word(ring, 2 + ring->size) - 1) < (uint16_t)(returned - published);
}
/* Have kicks, or with EVENT_IDX the next one; whether a chain is there already, which may bring none (virtio 1.2, 2.7.10). */
static uint32_t ring_ask(const struct ring *ring)
{
    volatile uint16_t *used = ring->used;
    if (ring->event_idx)
        used[2 + 4 * ring->size] = ring->counts[TAKEN];
    else
        used[0] = 0;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    return word(ring, 1) != ring->counts[TAKEN];
}
/* Have no kicks. With EVENT_IDX the stale event index does that (virtio 1.2, 2.7.10). */
static void ring_hush(const struct ring *ring)
{
    if (!ring->event_idx)
        *(volatile uint16_t *)ring->used = 1;
}
/* The first `size` bytes of the room are a packet now: its chains are finished, and its header says how many they are. */
static void batch_complete(struct batch *batch, uint32_t size)
{
    uint32_t begin = batch->done, at = 0;
    for (; size && batch->done < batch->count; batch->done++) {
        struct taken *chain = &batch->chains[batch->done];
        chain->written = size < chain->size ? size : chain->size;
        size -= chain->written;
        batch->room -= chain->size;
    }
    uint32_t chains = batch->done - begin;
    for (uint32_t i = batch->chains[begin].first; chains && at < HEADER && i < batch->chains[batch->done - 1].end; i++)
        for (size_t j = 0; at < HEADER && j < batch->pieces[i].iov_len; j++, at++)
            if (at >= NUM_BUFFERS)
                ((char *)batch->pieces[i].iov_base)[j] = chains >> 8 * (at - NUM_BUFFERS);
}
/* Read a packet into the room; its size, or -errno. */
static long batch_read(const struct batch *batch, int fd)
{
    const struct iovec *pieces = &batch->pieces[batch->chains[batch->done].first];
    uint32_t end = batch->chains[batch->count - 1].end - batch->chains[batch->done].first, count = 0;
    for (size_t room = 0; count < end && room < LARGEST_PACKET; count++)
        room += pieces[count].iov_len;
    ssize_t size = readv(fd, pieces, count);
    return size < 0 ? -errno : size;
}
static long batch_write(const struct batch *batch, uint32_t chain, int fd)
{
    const struct taken *packet = &batch->chains[chain];
    return writev(fd, &batch->pieces[packet->first], packet->end - packet->first);
}
/* Copy `data` into the chains [chain, end), or (`out`) what they hold into it, as far as both go. */
static void batch_copy(const struct batch *batch, uint32_t chain, uint32_t end, char *data, size_t size, int out)
{
    if (chain == end)
        return;
    for (uint32_t i = batch->chains[chain].first; size && i < batch->chains[end - 1].end; i++) {
        const struct iovec *piece = &batch->pieces[i];
        size_t part = piece->iov_len < size ? piece->iov_len : size;
        memcpy(out ? data : piece->iov_base, out ? piece->iov_base : data, part);
        data += part, size -= part;
    }
}
/* Packets from the guest that may leave: those of `least` bytes or more whose first LIKE ones are as `value`, where `mask` is set. */
enum { LIKE = 80, PASSES = 64 };
struct pass { uint64_t value[LIKE / 8], mask[LIKE / 8]; uint32_t least; };
struct passes { struct pass passes[PASSES]; uint32_t count, next; };
typedef const uint64_t __attribute__((aligned(1), may_alias)) word64;

/* Whether a packet may leave, whose header is made as it will be sent first. */
static int may_leave(const struct passes *passes, char *start, uint32_t size)
{
    start[0] &= 1; /* NEEDS_CSUM, the one flag with a meaning here, and no buffer count (virtio 1.2, 5.1.6.2) */
    memset(start + NUM_BUFFERS, 0, HEADER - NUM_BUFFERS);
    for (const struct pass *pass = passes->passes; pass < passes->passes + passes->count; pass++) {
        int i = LIKE / 8; /* from behind, as addresses and ports differ most */
        while (i && (((word64 *)start)[i - 1] & pass->mask[i - 1]) == pass->value[i - 1])
            i--;
        if (!i && size >= pass->least && size <= LARGEST_PACKET)
            return 1;
    }
    return 0;
}
static void passes_add(struct passes *passes, char *start, const char *mask, uint32_t least)
{
    if (may_leave(passes, start, least)) /* it was looked at beside another one */
        return;
    struct pass *pass = &passes->passes[passes->next];
    memcpy(pass->mask, mask, LIKE);
    for (int i = 0; i < LIKE / 8; i++)
        pass->value[i] = ((word64 *)start)[i] & pass->mask[i];
    pass->least = least;
    passes->next = (passes->next + 1) % PASSES;
    if (passes->count < PASSES)
        passes->count++;
}
/* What a turn leads to: an interrupt, another turn, or one in Python, for what is not as usual. */
enum { INTERRUPT = 1, AGAIN = 2, UNUSUAL = 4 };

/* Write the guest's packets, which an empty batch takes, to `fd`: all that there are, or none, if one is not known to be allowed. */
static uint32_t batch_send(struct batch *batch, const struct ring *ring, const struct passes *passes, int fd)
{
    uint32_t wanted = 0, seen = 0;
    do {
        uint32_t fault = batch_take(batch, ring, CHAINS, 0), count = batch->count;
        for (uint32_t i = 0; i < count; i++) /* all before the first is sent: that wakes its receiver, which may take this processor */
            if (!may_leave(passes, batch->starts[i], batch->chains[i].size)) {
                ring->counts[TAKEN] -= count;
                batch->count = batch->room = 0;
                return wanted | UNUSUAL;
            }
        for (; batch->done < count; batch->done++)
            batch_write(batch, batch->done, fd);
        seen += count ? batch->chains[count - 1].end : 1;
        batch_give_back(batch, ring);
        wanted |= ring_publish(ring);
        if (fault > FULL)
            return wanted | UNUSUAL;
        if (!ring_ask(ring))
            return wanted;
    } while (seen < PIECES / 2);
    return wanted | AGAIN;
}
/* Read packets, a queue's size at most, from `fd` into the driver's buffers, as long as these have room for any packet. */
static uint32_t batch_receive(struct batch *batch, const struct ring *ring, int fd)
{
    uint32_t wanted = 0;
    for (uint32_t packets = 0; packets < ring->size; packets++) {
        if (batch->room < LARGEST_PACKET) {
            batch_give_back(batch, ring);
            uint32_t fault = batch_take(batch, ring, ring->size - (batch->count - batch->done), WRITE);
            if (fault > FULL || batch->room < LARGEST_PACKET) {
                wanted = UNUSUAL;
                break;
            }
        }
        long size = batch_read(batch, fd);
        if (size <= 0) {
            wanted = size && size != -EAGAIN && size != -EINTR ? UNUSUAL : 0;
            break;
        }
        batch_complete(batch, size);
    }
    batch_give_back(batch, ring);
    ring_hush(ring);
    return wanted | ring_publish(ring);
}
