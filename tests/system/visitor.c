// A snippet that says what it finds in its guest, and leaves all that an unprivileged program can leave. The next one shall find
// the same. Every line is "KIND: what was found".
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ipc.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define KEY 4711
#define NAME "left-by-a-run"

static int leaving;

static void found(const char *kind, long result) {
    printf("%s: %s\n", kind, result >= 0 ? "there" : strerror(errno));
}

// In passing by: names the left files and what is writable; leaves a file in each folder that takes one.
static int visit(const char *path, const struct stat *status, int kind, struct FTW *where) {
    char place[4096];
    if (kind == FTW_SL || kind == FTW_SLN) return FTW_CONTINUE;
    if (!strcmp(path, "/sys") || (!strncmp(path, "/proc/", 6) && strncmp(path, "/proc/sys", 9))) return FTW_SKIP_SUBTREE;
    if (leaving && kind == FTW_D) {
        snprintf(place, sizeof place, "%s/" NAME, path);
        int fd = open(place, O_CREAT | O_WRONLY, 0666);
        if (fd >= 0) close(fd);
    } else if (!leaving && (strstr(path, NAME) || (!S_ISCHR(status->st_mode) && !access(path, W_OK)))) {
        printf("writable: %s\n", path);
    }
    return FTW_CONTINUE;
}

static int named_socket(const char *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path + 1, name, strlen(name));
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (leaving) return bind(fd, (void *)&address, sizeof address) ? -1 : listen(fd, 1);
    return connect(fd, (void *)&address, sizeof address);
}

static int port(int number) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(number), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (leaving) return bind(fd, (void *)&address, sizeof address) ? -1 : listen(fd, 1);
    return connect(fd, (void *)&address, sizeof address);
}

// How many entries of a folder are numbers and belong to us.
static int own(const char *folder) {
    char path[512];
    int count = 0;
    struct stat status;
    struct dirent *entry;
    DIR *open = opendir(folder);
    while ((entry = readdir(open))) {
        snprintf(path, sizeof path, "%s/%s", folder, entry->d_name);
        count += entry->d_name[0] >= '0' && entry->d_name[0] <= '9' && !stat(path, &status) && status.st_uid == getuid();
    }
    closedir(open);
    return count;
}

static int lines(const char *path) {
    int count = 0, letter;
    FILE *file = fopen(path, "r");
    while ((letter = getc(file)) != EOF) count += letter == '\n';
    fclose(file);
    return count;
}

static void objects(int flags) {
    found("shared memory", shmget(KEY, 4096, flags));
    found("semaphores", semget(KEY, 1, flags));
    found("queue", msgget(KEY, flags));
    found("POSIX queue", mq_open("/" NAME, O_RDONLY | (flags ? O_CREAT : 0), 0666, NULL));
    found("key", flags ? syscall(SYS_add_key, "user", NAME, "x", 1, -4) : syscall(SYS_request_key, "user", NAME, NULL, 0));
    found("abstract socket", named_socket(NAME));
    found("port", port(KEY));
    found("lock", flock(open("/etc/passwd", O_RDONLY), LOCK_EX | LOCK_NB));
}

static void look(void) {
    objects(0);
    nftw("/", visit, 16, FTW_PHYS | FTW_ACTIONRETVAL);
    for (int resource = 0; resource < RLIM_NLIMITS; resource++) {
        struct rlimit limit;
        getrlimit(resource, &limit);
        printf("limit %d: %ld %ld\n", resource, (long)limit.rlim_cur, (long)limit.rlim_max);
    }
    printf("niceness: %d\n", getpriority(PRIO_PROCESS, 0));
    printf("mask: %o\n", umask(0));
    printf("mounts: %d\n", lines("/proc/self/mounts"));
    printf("terminals: %d\n", own("/dev/pts"));
    printf("processes: %d\n", own("/proc"));
}

static void leave(void) {
    int ready[2];
    leaving = 1;
    if (pipe(ready)) exit(1);
    if (!fork()) {
        setsid();
        if (fork()) _exit(0);
        for (int number = 1; number < 65; number++) signal(number, SIG_IGN);
        fflush(stdout);
        freopen("/dev/null", "w", stdout);
        objects(IPC_CREAT | 0666);
        nftw("/", visit, 16, FTW_PHYS | FTW_ACTIONRETVAL);
        int terminal = open("/dev/ptmx", O_RDWR);
        unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWNET);
        mount("tmpfs", "/tmp", "tmpfs", 0, NULL);
        setpriority(PRIO_PROCESS, 0, 19);
        struct rlimit none = {0, 0};
        for (int resource = 0; resource < RLIM_NLIMITS; resource++)
            if (resource != RLIMIT_CPU) setrlimit(resource, &none); // that one would end it here where the guest is slow
        if (write(ready[1], "x", 1) != 1 || terminal < 0) _exit(1);
        for (;;) pause();
    }
    close(ready[1]);
    char done;
    printf("leaving: %s\n", read(ready[0], &done, 1) == 1 ? "done" : "failed");
}

int main(void) {
    look();
    fflush(stdout);
    leave();
    return 0;
}
