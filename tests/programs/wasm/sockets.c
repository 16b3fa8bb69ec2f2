/* Sockets by WAMR's extension of WASI. Addresses are of IPv4's loopback, or of IPv6's.
 *   sockets client FAMILY PORT LINES    asks a server a line at a time, on a socket that is used again when its connection broke
 *   sockets server FAMILY PORT          answers lines of connections and datagrams, until one of them is "quit"
 *   sockets options FAMILY PORT         sets options and reads them again
 *   sockets all FAMILY PORT             asks a server, and waits for more than the answer: says how much it got
 *   sockets pour FAMILY PORT SIZE       sends so many bytes and waits; the connection breaks when the process ends
 *   sockets resolve NAME                writes the addresses of a name
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define WASI(name) __attribute__((import_module("wasi_snapshot_preview1"), import_name(#name)))
#define CONNECTIONS 4

struct address {
    int kind;
    union {
        struct { uint8_t ip[4]; uint16_t port; } four;
        struct { uint16_t ip[8]; uint16_t port; } six;
    };
};
struct found { struct address address; int type; };
struct hints { int type, family; uint8_t enabled; };
struct buffer { void *bytes; size_t size; };

int sock_open(int pool, int family, int type, int *fd) WASI(sock_open);
int sock_bind(int fd, const struct address *address) WASI(sock_bind);
int sock_listen(int fd, int backlog) WASI(sock_listen);
int sock_connect(int fd, const struct address *address) WASI(sock_connect);
int sock_addr_local(int fd, struct address *address) WASI(sock_addr_local);
int sock_addr_remote(int fd, struct address *address) WASI(sock_addr_remote);
int sock_addr_resolve(const char *host, const char *service, struct hints *hints, struct found *found, int room, int *count)
    WASI(sock_addr_resolve);
int sock_recv_from(int fd, struct buffer *to, int count, int flags, struct address *from, uint32_t *size) WASI(sock_recv_from);
int sock_send_to(int fd, struct buffer *from, int count, int flags, const struct address *to, uint32_t *size) WASI(sock_send_to);
int sock_set_reuse_addr(int fd, int on) WASI(sock_set_reuse_addr);
int sock_get_reuse_addr(int fd, uint8_t *on) WASI(sock_get_reuse_addr);
int sock_set_tcp_no_delay(int fd, int on) WASI(sock_set_tcp_no_delay);
int sock_get_tcp_no_delay(int fd, uint8_t *on) WASI(sock_get_tcp_no_delay);
int sock_set_recv_timeout(int fd, uint64_t us) WASI(sock_set_recv_timeout);
int sock_get_recv_timeout(int fd, uint64_t *us) WASI(sock_get_recv_timeout);
int sock_set_linger(int fd, int on, int seconds) WASI(sock_set_linger);
int sock_get_linger(int fd, uint8_t *on, int *seconds) WASI(sock_get_linger);

static void check(int error, const char *what) {
    if (error) {
        errno = error;
        perror(what);
        exit(1);
    }
}

static struct address loopback(const char *family, const char *port) {
    struct address address = {.kind = *family == '6'};
    if (address.kind) {
        address.six.ip[7] = 1;
        address.six.port = atoi(port);
    } else {
        address.four.ip[0] = 127;
        address.four.ip[3] = 1;
        address.four.port = atoi(port);
    }
    return address;
}

static int opened(const struct address *address, int type) {
    int fd;
    check(sock_open(-1, address->kind, type, &fd), "open");
    return fd;
}

/* What a server makes of a line. */
static void answer(char *line, size_t size) {
    unsigned sum = 7;
    for (int round = 0; round < 200; round++)
        for (size_t place = 0; place < size; place++) sum = sum * 31 + (unsigned char)line[place] + round;
    sprintf(line, "%08x\n", sum);
}

static int client(struct address server, int lines) {
    char line[64], got[64];
    int fd = opened(&server, 1);
    check(sock_connect(fd, &server), "connect");
    for (int number = 0; number < lines;) {
        size_t size = sprintf(line, "line %d of some", number), have = 0;
        for (int round = 0; round < 500; round++) line[size - 1] = 'a' + (line[size - 1] * 7 + round) % 26;
        line[size++] = '\n';
        ssize_t count = send(fd, line, size, 0);
        while (count > 0 && (have == 0 || got[have - 1] != '\n'))
            if ((count = recv(fd, got + have, sizeof got - have, 0)) > 0) have += count;
        if (count > 0) {
            printf("%.*s", (int)have, got);
            number++;
        } else if (count == 0 || errno != ECONNRESET) {
            perror("line");
            return 1;
        }
    }
    struct address local, remote;
    check(sock_addr_local(fd, &local), "local");
    check(sock_addr_remote(fd, &remote), "remote");
    return memcmp(&remote, &server, server.kind ? 22 : 10) || local.kind != server.kind ? 2 : 0;
}

static int server(struct address address) {
    char line[CONNECTIONS + 2][64];
    size_t have[CONNECTIONS + 2] = {0};
    struct pollfd fds[CONNECTIONS + 2];
    for (int place = 0; place < CONNECTIONS + 2; place++) fds[place] = (struct pollfd){.fd = -1, .events = POLLIN};
    fds[0].fd = opened(&address, 1);
    check(sock_set_reuse_addr(fds[0].fd, 1), "reuse");
    check(sock_bind(fds[0].fd, &address), "bind");
    check(sock_listen(fds[0].fd, 8), "listen");
    fds[1].fd = opened(&address, 0);
    check(sock_bind(fds[1].fd, &address), "bind for datagrams");
    for (;;) {
        struct pollfd wanted[CONNECTIONS + 2];
        int count = 0;
        for (int place = 0; place < CONNECTIONS + 2; place++)
            if (fds[place].fd >= 0) wanted[count++] = fds[place];
        if (poll(wanted, count, -1) < 0) check(errno, "poll");
        for (int ready = 0; ready < count; ready++) {
            if (!wanted[ready].revents) continue;
            int place = 0;
            while (fds[place].fd != wanted[ready].fd) place++;
            if (place == 0) {
                int fd = accept(fds[0].fd, NULL, NULL), free = 2;
                if (fd < 0) check(errno, "accept");
                if (fcntl(fd, F_SETFL, O_NONBLOCK) < 0) check(errno, "flags");
                while (free < CONNECTIONS + 2 && fds[free].fd >= 0) free++;
                if (free == CONNECTIONS + 2) close(fd);
                else fds[free].fd = fd, have[free] = 0;
            } else if (place == 1) {
                struct address from;
                struct buffer buffer = {line[1], sizeof line[1]};
                uint32_t size;
                check(sock_recv_from(fds[1].fd, &buffer, 1, 0, &from, &size), "receive");
                answer(line[1], size);
                buffer.size = strlen(line[1]);
                check(sock_send_to(fds[1].fd, &buffer, 1, 0, &from, &size), "send");
            } else {
                ssize_t size = recv(fds[place].fd, line[place] + have[place], sizeof line[0] - have[place], 0);
                if (size < 0 && errno == EAGAIN) continue;
                if (size > 0) have[place] += size;
                if (size > 0 && line[place][have[place] - 1] != '\n') continue;
                if (size > 0 && have[place] == 5 && !memcmp(line[place], "quit\n", 5)) return 0;
                if (size > 0) answer(line[place], have[place]);
                have[place] = 0;
                if (size <= 0 || send(fds[place].fd, line[place], strlen(line[place]), 0) < 0) {
                    close(fds[place].fd);
                    fds[place].fd = -1;
                }
            }
        }
    }
}

static int options(struct address server) {
    uint8_t reuse, delay, lingers;
    uint64_t timeout;
    int fd = opened(&server, 1), seconds;
    check(sock_set_reuse_addr(fd, 1), "reuse");
    check(sock_set_tcp_no_delay(fd, 1), "delay");
    check(sock_set_linger(fd, 1, 5), "linger");
    check(sock_set_recv_timeout(fd, 20000), "timeout");
    check(sock_connect(fd, &server), "connect");
    char byte;
    for (volatile int round = 0; round < 3000; round++) {}
    ssize_t size = recv(fd, &byte, 1, 0);
    printf("%s\n", size == 0 ? "end" : size > 0 ? "a byte" : strerror(errno));
    check(sock_get_reuse_addr(fd, &reuse), "reuse");
    check(sock_get_tcp_no_delay(fd, &delay), "delay");
    check(sock_get_linger(fd, &lingers, &seconds), "linger");
    check(sock_get_recv_timeout(fd, &timeout), "timeout");
    printf("%d %d %d %d %llu\n", reuse, delay, lingers, seconds, (unsigned long long)timeout);
    return 0;
}

static int all(struct address server) {
    char got[64];
    int fd = opened(&server, 1);
    check(sock_connect(fd, &server), "connect");
    if (send(fd, "line\n", 5, 0) != 5 || recv(fd, got, 1, MSG_PEEK) != 1) return 1;
    check(sock_set_recv_timeout(fd, 20000), "timeout");
    for (int round = 0; round < 2; round++) printf("%d\n", (int)recv(fd, got, sizeof got, MSG_WAITALL));
    return 0;
}

static int pour(struct address server, int size) {
    char *bytes = malloc(size), byte;
    int fd = opened(&server, 1);
    memset(bytes, 'x', size);
    check(sock_set_linger(fd, 1, 0), "linger");
    check(sock_connect(fd, &server), "connect");
    for (int sent = 0; sent < size;) {
        ssize_t count = send(fd, bytes + sent, size - sent, 0);
        if (count < 0) check(errno, "send");
        sent += count;
    }
    puts("sent");
    return recv(fd, &byte, 1, 0) != 0;
}

static int resolve(const char *name) {
    struct found found[8];
    struct hints hints = {.type = 1, .family = 0, .enabled = 1};
    int count;
    check(sock_addr_resolve(name, "80", &hints, found, 8, &count), "resolve");
    for (int place = 0; place < count && place < 8; place++) {
        uint8_t *ip = found[place].address.four.ip;
        printf("%d.%d.%d.%d:%d\n", ip[0], ip[1], ip[2], ip[3], found[place].address.four.port);
    }
    return 0;
}

int main(int count, char **args) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count > 4 && !strcmp(args[1], "client")) return client(loopback(args[2], args[3]), atoi(args[4]));
    if (count > 3 && !strcmp(args[1], "server")) return server(loopback(args[2], args[3]));
    if (count > 3 && !strcmp(args[1], "options")) return options(loopback(args[2], args[3]));
    if (count > 3 && !strcmp(args[1], "all")) return all(loopback(args[2], args[3]));
    if (count > 4 && !strcmp(args[1], "pour")) return pour(loopback(args[2], args[3]), atoi(args[4]));
    return count > 2 && !strcmp(args[1], "resolve") ? resolve(args[2]) : 2;
}
