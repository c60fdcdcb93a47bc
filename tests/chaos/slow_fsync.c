/* A disk that stalls: no flush returns while the file named by CHAOS_STALL exists.
 * cc -shared -fPIC -O1 -o slow_fsync.so slow_fsync.c -ldl, then LD_PRELOAD it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

static int flush(const char *name, int fd)
{
    const char *stall = getenv("CHAOS_STALL");
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);

    while (stall && access(stall, F_OK) == 0)
        usleep(5000);
    return real(fd);
}

int fsync(int fd) { return flush("fsync", fd); }
int fdatasync(int fd) { return flush("fdatasync", fd); }
