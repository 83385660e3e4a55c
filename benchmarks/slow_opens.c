/* Preloaded, it lets each open of a file or folder below a path wait, as one of a network mount does.
 *
 *     gcc -O2 -shared -fPIC -o slow_opens.so slow_opens.c -ldl
 *     SLOW_OPENS_BELOW=/data SLOW_OPENS_US=1000 LD_PRELOAD=./slow_opens.so COMMAND
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void wait_if_below(int folder, const char *path)
{
    static const char *below;
    static long microseconds = -1;
    if (microseconds < 0) {
        const char *text = getenv("SLOW_OPENS_US");
        below = getenv("SLOW_OPENS_BELOW");
        microseconds = text != NULL && below != NULL ? atol(text) : 0;
    }
    if (microseconds == 0 || path == NULL)
        return;
    char place[PATH_MAX];
    if (path[0] != '/') { /* where it lies is enough: what is below that is below the path */
        char link[64];
        ssize_t length = -1;
        if (folder == AT_FDCWD) {
            if (getcwd(place, sizeof place) != NULL)
                length = (ssize_t)strlen(place);
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            length = readlink(link, place, sizeof place - 1);
        }
        if (length < 0)
            return;
        place[length] = '\0';
        path = place;
    }
    if (strncmp(path, below, strlen(below)) != 0)
        return;
    const struct timespec time = {microseconds / 1000000, microseconds % 1000000 * 1000};
    nanosleep(&time, NULL);
}

#define NEXT(type, name) ((type)dlsym(RTLD_NEXT, name))

#define OPEN(name)                                                                                 \
    int name(const char *path, int flags, ...)                                                     \
    {                                                                                              \
        va_list more;                                                                              \
        va_start(more, flags);                                                                     \
        const mode_t mode = va_arg(more, mode_t);                                                  \
        va_end(more);                                                                              \
        wait_if_below(AT_FDCWD, path);                                                             \
        return NEXT(int (*)(const char *, int, ...), #name)(path, flags, mode);                    \
    }

#define OPENAT(name)                                                                               \
    int name(int folder, const char *path, int flags, ...)                                         \
    {                                                                                              \
        va_list more;                                                                              \
        va_start(more, flags);                                                                     \
        const mode_t mode = va_arg(more, mode_t);                                                  \
        va_end(more);                                                                              \
        wait_if_below(folder, path);                                                               \
        return NEXT(int (*)(int, const char *, int, ...), #name)(folder, path, flags, mode);       \
    }

#define FOPEN(name)                                                                                \
    FILE *name(const char *path, const char *mode)                                                 \
    {                                                                                              \
        wait_if_below(AT_FDCWD, path);                                                             \
        return NEXT(FILE *(*)(const char *, const char *), #name)(path, mode);                     \
    }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
FOPEN(fopen)
FOPEN(fopen64)

void *opendir(const char *path)
{
    wait_if_below(AT_FDCWD, path);
    return NEXT(void *(*)(const char *), "opendir")(path);
}
