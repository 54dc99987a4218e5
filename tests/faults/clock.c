/* Preloaded into a sender: shifts its monotonic clock, and so LSL's, by the value in FAULTS_CLOCK. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

static double *shift_s;

__attribute__((constructor)) static void open_shift(void) {
    const char *path = getenv("FAULTS_CLOCK");
    int fd = path ? open(path, O_RDONLY) : -1;
    void *found = fd >= 0 ? mmap(NULL, sizeof(double), PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    shift_s = found == MAP_FAILED ? NULL : found;
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, time);
    if (!failed && clock == CLOCK_MONOTONIC && shift_s) {
        double whole = floor(*shift_s);
        time->tv_sec += (time_t)whole;
        time->tv_nsec += (long)((*shift_s - whole) * 1e9);
        if (time->tv_nsec >= 1000000000L) { time->tv_nsec -= 1000000000L; time->tv_sec += 1; }
    }
    return failed;
}
