/* Kills its own process with SIGKILL just before the n-th call that changes a file or sends to a server.
 *
 *   cc -shared -fPIC -o kill_at.so kill_at.c -ldl;  LD_PRELOAD=./kill_at.so python ...
 *
 * `arm(n)` begins to count; 0 stops. `counted()` tells how many calls there have been.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

static long armed = 0, calls = 0;

void arm(long n) { armed = n; calls = 0; }
long counted(void) { return calls; }

static void tick(void) {
    if (armed && ++calls == armed) kill(getpid(), SIGKILL);
}

#define FORWARD(type, name, parameters, arguments)                  \
    type name parameters {                                          \
        static type(*real) parameters = 0;                          \
        if (!real) real = (type(*) parameters)dlsym(RTLD_NEXT, #name); \
        tick();                                                     \
        return real arguments;                                      \
    }

FORWARD(ssize_t, write, (int fd, const void *b, size_t n), (fd, b, n))
FORWARD(ssize_t, pwrite, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o))
FORWARD(ssize_t, pwrite64, (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o))
FORWARD(int, fsync, (int fd), (fd))
FORWARD(int, fdatasync, (int fd), (fd))
FORWARD(int, ftruncate, (int fd, off_t n), (fd, n))
FORWARD(int, ftruncate64, (int fd, off64_t n), (fd, n))
FORWARD(int, rename, (const char *a, const char *b), (a, b))
FORWARD(int, unlink, (const char *a), (a))
FORWARD(int, mkdir, (const char *a, mode_t m), (a, m))
FORWARD(ssize_t, send, (int fd, const void *b, size_t n, int f), (fd, b, n, f))
