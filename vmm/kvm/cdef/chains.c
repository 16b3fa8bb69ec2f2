/* Chains of a virtqueue (virtio 1.2, 2.7) as pieces of memory for readv(2) and writev(2).

   The guest may rewrite its rings at any moment. So each head and descriptor is read once, and only that copy is checked and used: each
   buffer lies inside one region, each chain ends within the queue's size. Of a packet from the guest the start, which the caller looks at,
   is copied too, and the copy is what is sent. */
#include <sys/uio.h>

enum { CHAINS = 256, PIECES = 1024 /* IOV_MAX, readv(2) */, START = 140, LARGEST_PACKET = 65561, HEADER = 12, NUM_BUFFERS = 10 };
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 }; /* flags of a descriptor (virtio 1.2, 2.7.5) */
enum { FINE, FULL, BAD_INDEX, BAD_HEAD, BAD_NEXT, BAD_INDIRECT, BAD_LENGTH, BAD_DIRECTION, BAD_ADDRESS, TOO_LONG }; /* the faults: FAULTS in queue.py */

struct region { uint64_t base, size; char *at; };
struct ring {
    const struct region *regions;
    const char *descriptors;
    const uint16_t *available; /* flags, index, head of each, used_event: for `word` */
    uint16_t *used;            /* flags, index, {head, length} of each, avail_event */
    uint32_t region_count, size, indirect, event_idx;
};
struct taken { uint32_t head, size, written, first, end; }; /* a chain: of `size` bytes, in pieces [first, end) */
/* Chains in order: [given, done) are finished, [done, count) are not. */
struct batch {
    uint32_t given, done, count, fault, bad_head;
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
/* Take up to `most` chains, the first of which is number `at`, while those before `returned` are with the driver again; how many. It ends
   early when the batch is FULL, and behind a bad chain, `bad_head`, which is not in the batch (a head outside the table is not even taken). */
static uint32_t batch_take(struct batch *batch, const struct ring *ring, uint16_t at, uint16_t returned, uint32_t most, uint32_t kind)
{
    uint32_t taken = 0, gone = batch->given, freed;
    uint16_t offered = word(ring, 1) - at;
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    batch->fault = offered + (uint16_t)(at - returned) > ring->size ? BAD_INDEX : FINE; /* those that are out count too */
    most = offered < most ? offered : most;
    if (kind && gone) { /* make room; starts do not move, so what is to be sent stays */
        freed = batch->chains[gone].first;
        memmove(batch->pieces, batch->pieces + freed, (batch->chains[batch->count - 1].end - freed) * sizeof *batch->pieces);
        memmove(batch->chains, batch->chains + gone, (batch->count - gone) * sizeof *batch->chains);
        batch->given = 0, batch->done -= gone, batch->count -= gone;
        for (uint32_t i = 0; i < batch->count; i++)
            batch->chains[i].first -= freed, batch->chains[i].end -= freed;
    }
    while (taken < most && !batch->fault) {
        uint32_t first = (batch->count ? batch->chains[batch->count - 1].end : 0) + !kind, head;
        if (batch->count == CHAINS || first + ring->size > PIECES) {
            batch->fault = FULL;
            break;
        }
        head = word(ring, 2 + (at + taken) % ring->size);
        if (head >= ring->size) {
            batch->fault = BAD_HEAD;
            break;
        }
        taken++;
        batch->bad_head = head;
        if ((batch->fault = walk(batch, ring, head, kind, first)))
            break;
        struct taken *chain = &batch->chains[batch->count++];
        batch->room += chain->size;
        if (!kind)
            copy_start(batch, chain);
    }
    return taken;
}
/* Give the finished chains back, as numbers from `at` on; how many. */
static uint32_t batch_give_back(struct batch *batch, const struct ring *ring, uint16_t at)
{
    uint32_t count = batch->done - batch->given;
    uint32_t *elements = (uint32_t *)(ring->used + 2);
    for (; batch->given < batch->done; batch->given++, at++) {
        elements[2 * (at % ring->size)] = batch->chains[batch->given].head;
        elements[2 * (at % ring->size) + 1] = batch->chains[batch->given].written;
    }
    if (batch->given == batch->count)
        batch->given = batch->done = batch->count = batch->room = 0;
    return count;
}
/* Show the driver, who knows of those before `published`, what is given back, before number `returned`; whether it wants an interrupt. */
static uint32_t ring_publish(const struct ring *ring, uint16_t published, uint16_t returned)
{
    if (published == returned)
        return 0;
    __atomic_thread_fence(__ATOMIC_RELEASE);
    *(volatile uint16_t *)&ring->used[1] = returned;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!ring->event_idx)
        return !(word(ring, 0) & 1);
    return (uint16_t)(returned - word(ring, 2 + ring->size) - 1) < (uint16_t)(returned - published);
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
