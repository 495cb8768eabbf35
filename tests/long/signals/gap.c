/* SIGTERM in the gap: after the last look at what signals have come, before a long sleep begins.

   Preloaded (LD_PRELOAD) it stands in for the C library's way to sleep that Python uses. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <time.h>

static const double LONG = 0.9; /* seconds: the agent sleeps a second in one go */

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *until,
                    struct timespec *left) {
  int (*sleep)(clockid_t, int, const struct timespec *, struct timespec *) =
      dlsym(RTLD_NEXT, "clock_nanosleep");
  struct timespec now = {0, 0};
  if (flags == TIMER_ABSTIME)
    clock_gettime(clock, &now);
  if (until->tv_sec - now.tv_sec > LONG)
    raise(SIGTERM);
  return sleep(clock, flags, until, left);
}
