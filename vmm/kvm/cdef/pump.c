/* What a net device and its tap usually do when a descriptor is ready, done while the event loop waits, without Python.

   Of Python's threads only the event loop's works on the device, which is the one that waits here; a vCPU's calls `pump_stop` before it
   changes anything. So nothing of the device changes while it is `on`, and the lock is there for `pump_stop` to wait for a turn's end. */
#include <pthread.h>
#include <sys/epoll.h>

enum { READY = 16 };
struct ready { int32_t fd; uint32_t events; };
struct pump {
    struct batch *outgoing, *incoming;
    const struct ring *transmit, *receive; /* no `receive`: packets to the guest are Python's */
    const struct passes *passes;
    int32_t tap, interrupt, transmit_kick, receive_kick; /* descriptors */
    uint32_t on, kicks;                                  /* how many kicks led to a turn here */
    pthread_mutex_t lock;
};

static void pump_init(struct pump *pump)
{
    pthread_mutex_init(&pump->lock, NULL);
}
/* Leave all to Python, from when this returns. */
static void pump_stop(struct pump *pump)
{
    pthread_mutex_lock(&pump->lock);
    pump->on = 0;
    pthread_mutex_unlock(&pump->lock);
}
static void tell(int eventfd)
{
    uint64_t one = 1;
    if (write(eventfd, &one, sizeof one) < 0) {
        /* it is full: it was told already */
    }
}
/* Do what `events` of `fd` ask for; whether that is all done. */
static int pump_turn(struct pump *pump, int fd, uint32_t events)
{
    uint32_t led = 0;
    if (fd != pump->tap && fd != pump->transmit_kick && fd != pump->receive_kick)
        return 0;
    pthread_mutex_lock(&pump->lock);
    if (!pump->on || events != EPOLLIN || (fd != pump->transmit_kick && !pump->receive)) {
        led = UNUSUAL;
    } else if (fd == pump->transmit_kick) {
        led = batch_send(pump->outgoing, pump->transmit, pump->passes, pump->tap);
        if (led & AGAIN)
            tell(fd);
    } else if (fd == pump->tap) {
        led = batch_receive(pump->incoming, pump->receive, fd);
    }
    if (led & INTERRUPT)
        tell(pump->interrupt);
    if (led & UNUSUAL)
        pump->on = 0;
    else
        pump->kicks += fd != pump->tap;
    pthread_mutex_unlock(&pump->lock);
    return !(led & UNUSUAL);
}
/* Wait once for what `epoll` watches, and do what can be done here; how many of those that are `left` for Python, or -errno. */
static long pump_wait(struct pump *pump, int epoll, int timeout_ms, struct ready *left)
{
    struct epoll_event ready[READY];
    int count = epoll_wait(epoll, ready, READY, timeout_ms), kept = 0;
    for (int i = 0; i < count; i++)
        if (!pump_turn(pump, ready[i].data.fd, ready[i].events))
            left[kept++] = (struct ready){ready[i].data.fd, ready[i].events};
    return count < 0 && errno != EINTR ? -errno : kept;
}
