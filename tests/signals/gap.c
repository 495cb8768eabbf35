/* SIGTERM in the gap: after the last look at what signals have come, before a long sleep begins.

   Preloaded (LD_PRELOAD) it stands in for the C library's two ways to sleep that Python uses. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <poll.h>
#include <signal.h>
#include <time.h>

static const double LONG = 0.9; /* seconds: the agent sleeps a second in one go */

static void fall(double seconds) {
  if (seconds > LONG)
    raise(SIGTERM);
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *until,
                    struct timespec *left) {
  int (*sleep)(clockid_t, int, const struct timespec *, struct timespec *) =
      dlsym(RTLD_NEXT, "clock_nanosleep");
  struct timespec now = {0, 0};
  if (flags == TIMER_ABSTIME)
    clock_gettime(clock, &now);
  fall((double)(until->tv_sec - now.tv_sec));
  return sleep(clock, flags, until, left);
}

int poll(struct pollfd *files, nfds_t number, int timeout) {
  int (*wait)(struct pollfd *, nfds_t, int) = dlsym(RTLD_NEXT, "poll");
  fall(timeout / 1000.0);
  return wait(files, number, timeout);
}
