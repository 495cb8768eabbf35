/* The points at which CPython runs signal handlers, one after the other, with nothing traced.

   deliver.py loads this with ctypes and makes `at_point` the handler of SIGQUIT, which no agent
   uses. Each time it runs it lets SIGQUIT come again, so CPython runs it at the next point at which
   it runs handlers. It is no Python code, so it adds no points of its own. At the chosen point it
   raises the signal that is to be delivered: CPython looks for signals in the order of their
   numbers, SIGQUIT has a low one, so the handler of the other runs at this very point. */

#include <signal.h>
#include <stdio.h>
#include <time.h>

/* Python's, declared here so that its headers need not be installed. */
extern int PyErr_SetInterruptEx(int number);
extern void *PyObject_CallFunction(void *callable, const char *format, ...);
extern void *PyObject_GetAttrString(void *object, const char *name);
extern const char *PyUnicode_AsUTF8(void *text);
extern void *PyFrame_GetCode(void *frame);
extern int PyFrame_GetLineNumber(void *frame);

static int counting; /* from begin() until end(), or until the delivery */
static int passed;   /* points since begin() */
static int chosen;
static int signal_number; /* what is delivered at the chosen point */
static double jump;       /* seconds by which the clock below jumps there */
static int place;         /* a file that is told where that is */
static double ahead;      /* seconds by which the clock is ahead of the real one */
static void *set_wakeup_fd;

/* The wake-up descriptor is kept out of it: it is told of each signal, and would end a wait. */
static void come_again(void) {
  void *fd = PyObject_CallFunction(set_wakeup_fd, "i", -1);
  PyErr_SetInterruptEx(SIGQUIT);
  PyObject_CallFunction(set_wakeup_fd, "O", fd);
}

void begin(int point, int number, double seconds, int file, void *function) {
  passed = 0;
  chosen = point;
  signal_number = number;
  jump = seconds;
  place = file;
  set_wakeup_fd = function;
  counting = 1;
  come_again();
}

int end(void) {
  counting = 0;
  return passed;
}

void at_point(int number, void *frame) {
  (void)number;
  if (!counting)
    return;
  if (++passed != chosen) {
    come_again();
    return;
  }
  counting = 0;
  void *code = PyFrame_GetCode(frame);
  dprintf(place, "%s:%d %s\n", PyUnicode_AsUTF8(PyObject_GetAttrString(code, "co_filename")),
          PyFrame_GetLineNumber(frame),
          PyUnicode_AsUTF8(PyObject_GetAttrString(code, "co_qualname")));
  ahead += jump;
  raise(signal_number);
}

/* time.monotonic */
double monotonic(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec + now.tv_nsec / 1e9 + ahead;
}

void advance(double seconds) { ahead += seconds; }
