/* The init of benchmarks' guests: says SPOKEN every 20 ms on the port that the kernel's command
 * line names as port=NAME, and answers each byte with ANSWERED. No message of a kernel has these.
 * Static, and all that is in the initramfs. */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { TICK_MS = 20, SPOKEN = 1, ANSWERED = 2 };

int main(void)
{
    char path[64];
    const char *name = getenv("port"); /* what the kernel does not know, init has in its environment */
    struct timespec soon = { .tv_nsec = 1000000 };
    struct termios line;
    int port;

    mkdir("/dev", 0755);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    snprintf(path, sizeof path, "/dev/%s", name ? name : "console");
    while ((port = open(path, O_RDWR | O_NOCTTY)) < 0)
        nanosleep(&soon, NULL); /* its driver makes it when the host has told of it */
    if (tcgetattr(port, &line) == 0) {
        cfmakeraw(&line);
        tcsetattr(port, TCSANOW, &line);
    }
    for (;;) {
        char byte = SPOKEN;
        struct pollfd ready = { .fd = port, .events = POLLIN };

        if (write(port, &byte, 1) < 0)
            return 1;
        while (poll(&ready, 1, TICK_MS) > 0 && read(port, &byte, 1) == 1) {
            byte = ANSWERED;
            if (write(port, &byte, 1) < 0)
                return 1;
        }
    }
}
