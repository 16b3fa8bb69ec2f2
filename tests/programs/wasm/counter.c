/* A counter that sleeps between its lines. */
#include <stdio.h>
#include <time.h>

int main(void) {
    const struct timespec pause = {.tv_nsec = 200 * 1000};
    for (int count = 0; count < 30; count++) {
        printf("%d\n", count);
        nanosleep(&pause, NULL);
    }
    return 7;
}
