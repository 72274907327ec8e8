/* A clock that is wrong by as many seconds as the file CLOCK says; LD_PRELOAD.
 * Durations (the monotonic clock) stay right, as when a real clock is set. */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int answer = syscall(SYS_clock_gettime, clock, now);
    const char *name = getenv("CLOCK");
    if (answer == 0 && clock == CLOCK_REALTIME && name) {
        char told[16] = {0};
        int file = open(name, O_RDONLY | O_CLOEXEC);
        if (file >= 0) {
            if (read(file, told, sizeof told - 1) > 0)
                now->tv_sec += atol(told);
            close(file);
        }
    }
    return answer;
}
