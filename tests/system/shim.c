// A function of few words: it answers a request with the request, and prints how many it has had. "who" is answered with random
// bytes in hexadecimal, how often it was resumed and the host's name; "exit" with its end; "hang" with nothing.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

static char body[6 << 20], type[65536];

static void take(void *into, size_t size) {
    for (char *at = into; size;) {
        ssize_t count = read(3, at, size);
        if (count <= 0) exit(0);
        at += count, size -= count;
    }
}

static void give(const void *from, size_t size) {
    for (const char *at = from; size;) {
        ssize_t count = write(3, at, size);
        if (count <= 0) exit(1);
        at += count, size -= count;
    }
}

static void say(uint8_t kind, uint32_t id, uint16_t count, uint32_t size) {
    uint64_t took = kind;
    give(&kind, sizeof kind), give(&id, sizeof id), give(&took, sizeof took);
    give(&count, sizeof count), give(type, count), give(&size, sizeof size), give(body, size);
}

int main(void) {
    uint8_t kind;
    uint16_t count;
    uint32_t id, size;
    int requests = 0, resumed = 0;
    say(0, 0, 0, 0);
    for (;;) {
        take(&kind, sizeof kind), take(&id, sizeof id), take(&count, sizeof count), take(type, count);
        take(&size, sizeof size), take(body, size);
        if (kind == 2) {
            resumed++;
            continue;
        }
        printf("%d\n", ++requests), fflush(stdout);
        if (size == 4 && !memcmp(body, "exit", 4)) return 3;
        if (size == 4 && !memcmp(body, "hang", 4)) continue;
        if (size == 3 && !memcmp(body, "who", 3)) {
            unsigned char drawn[16];
            char name[256];
            getrandom(drawn, sizeof drawn, 0), gethostname(name, sizeof name);
            size = 0;
            for (size_t at = 0; at < sizeof drawn; at++) size += sprintf(body + size, "%02x", drawn[at]);
            size += sprintf(body + size, " %d %s", resumed, name);
        }
        say(1, id, count, size);
    }
}
