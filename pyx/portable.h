/*
 * The same by what POSIX has, for illumos, Solaris and others; see system.pxd for what each is, and illumos.md for what
 * was looked up there. Of what nothing comes close to, the call fails with ENOSYS, and who calls has another way.
 */
#ifndef CTRD_PORTABLE_H
#define CTRD_PORTABLE_H

#include <string.h>

static inline int ctrd_no(void)
{
    errno = ENOSYS;
    return -1;
}

/* ---- descriptors ---- */

#undef O_PATH
#define O_PATH 0 /* no handles: device and inode are compared after each open */

static inline int ctrd_reopen(int fd, int flags)
{
    (void)fd;
    (void)flags;
    errno = ENOENT;
    return -1;
}

/* By its name, and only if that is the same terminal still. */
static inline int ctrd_open_terminal(int fd, int flags)
{
    char path[256];
    struct stat ours, there;
    int again, number = ttyname_r(fd, path, sizeof path);
    if (number) {
        errno = number;
        return -1;
    }
    again = open(path, flags);
    if (again < 0)
        return -1;
    if (fstat(fd, &ours) || fstat(again, &there) || !S_ISCHR(there.st_mode) || ours.st_rdev != there.st_rdev ||
        ours.st_dev != there.st_dev || ours.st_ino != there.st_ino) {
        close(again);
        errno = ESTALE;
        return -1;
    }
    return again;
}

static inline int ctrd_is_terminal_master(int fd) { return ptsname(fd) != NULL; }

/* ---- pipes ---- */

static inline int ctrd_has_writer(int fd)
{
    (void)fd;
    return -ENOSYS;
}

static inline ssize_t ctrd_write_no_signal(int fd, const struct iovec *vectors, int count)
{
    (void)fd;
    (void)vectors;
    (void)count;
    return ctrd_no();
}

static inline int ctrd_pipe_size(int fd)
{
    (void)fd;
    return ctrd_no();
}

static inline int ctrd_pipe_resize(int fd, int size)
{
    (void)fd;
    (void)size;
    return ctrd_no();
}

static inline ssize_t ctrd_move(int source, int sink, size_t size)
{
    (void)source;
    (void)sink;
    (void)size;
    return ctrd_no();
}

static inline int ctrd_pipes_are_free(void) { return 0; }

/* ---- waiting ---- */

static inline int ctrd_wake_pair(int *fds)
{
    if (pipe(fds))
        return -1;
    for (int i = 0; i < 2; i++) {
        fcntl(fds[i], F_SETFD, FD_CLOEXEC);
        fcntl(fds[i], F_SETFL, O_NONBLOCK);
    }
    return 0;
}

static inline int ctrd_ppoll(struct pollfd *fds, unsigned long count, int64_t nanoseconds, const sigset_t *mask)
{
#ifdef __APPLE__ /* without ppoll: a signal between the two calls is noticed one turn later */
    sigset_t before;
    int result, number;
    if (mask)
        pthread_sigmask(SIG_SETMASK, mask, &before);
    result = poll(fds, (nfds_t)count, nanoseconds < 0 ? -1 : (int)(nanoseconds / 1000000 + 1));
    number = errno;
    if (mask)
        pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = number;
    return result;
#else
    struct timespec limit = { nanoseconds / 1000000000, nanoseconds % 1000000000 };
    return ppoll(fds, count, nanoseconds < 0 ? NULL : &limit, mask);
#endif
}

#undef IN_Q_OVERFLOW
#define IN_Q_OVERFLOW 0x4000U
#define inotify_event ctrd_inotify_event /* of the shape that the code for it takes for granted; there are none */
struct ctrd_inotify_event {
    int wd;
    uint32_t mask, cookie, len;
};

static inline int ctrd_watch_init(void) { return ctrd_no(); }

static inline int ctrd_watch_add(int inotify, int fd)
{
    (void)inotify;
    (void)fd;
    return ctrd_no();
}

static inline int ctrd_watch_remove(int inotify, int watch)
{
    (void)inotify;
    (void)watch;
    return ctrd_no();
}

static inline void ctrd_begin_thread(const char *name) { (void)name; }

/*
 * ---- the poller: poll ----
 *
 * "Once" is what an edge is to epoll: what was told is not asked for again before ctrd_poller_again. An error or a
 * hang-up, which poll tells whether it is asked or not, is told once too: its descriptor is left out from then on.
 */

typedef struct {
    uint64_t tag;
    unsigned events;
} ctrd_seen;

typedef struct {
    struct pollfd *polled; /* the descriptor is -1 - fd where it is left out */
    uint64_t *tags;
    short *wanted;
    char *once;
    int *places; /* by descriptor: its index in those above, -1: none */
    int count, room, descriptors, next;
} ctrd_poller;

static inline uint64_t ctrd_tag(const ctrd_seen *seen) { return seen->tag; }
static inline unsigned ctrd_events(const ctrd_seen *seen) { return seen->events; }

static inline void ctrd_poller_none(ctrd_poller *poller) { memset(poller, 0, sizeof *poller); }

static inline int ctrd_poller_open(ctrd_poller *poller)
{
    ctrd_poller_none(poller);
    return 0;
}

static inline void ctrd_poller_close(ctrd_poller *poller)
{
    free(poller->polled);
    free(poller->tags);
    free(poller->wanted);
    free(poller->once);
    free(poller->places);
    ctrd_poller_none(poller);
}

static inline int ctrd_grown(void **array, int count, size_t size)
{
    void *more = realloc(*array, (size_t)count * size);
    if (more)
        *array = more;
    return more != NULL;
}

static inline int ctrd_poller_add(ctrd_poller *poller, int fd, unsigned events, int once, uint64_t tag)
{
    int i = poller->count;
    if (i == poller->room) {
        int room = i ? 2 * i : 16;
        void *polled = poller->polled, *tags = poller->tags, *wanted = poller->wanted, *marks = poller->once;
        int grown = ctrd_grown(&polled, room, sizeof *poller->polled) & ctrd_grown(&tags, room, sizeof *poller->tags) &
                    ctrd_grown(&wanted, room, sizeof *poller->wanted) & ctrd_grown(&marks, room, 1);
        poller->polled = polled;
        poller->tags = tags;
        poller->wanted = wanted;
        poller->once = marks;
        if (!grown)
            return ENOMEM;
        poller->room = room;
    }
    if (fd >= poller->descriptors) {
        int descriptors = 2 * fd + 16;
        void *places = poller->places;
        if (!ctrd_grown(&places, descriptors, sizeof *poller->places))
            return ENOMEM;
        poller->places = places;
        while (poller->descriptors < descriptors)
            poller->places[poller->descriptors++] = -1;
    }
    if (poller->places[fd] >= 0)
        return EEXIST;
    poller->polled[i].fd = fd;
    poller->polled[i].events = poller->wanted[i] = (short)events;
    poller->once[i] = once != 0;
    poller->tags[i] = tag;
    poller->places[fd] = i;
    poller->count++;
    return 0;
}

static inline int ctrd_poller_place(const ctrd_poller *poller, int fd)
{
    return fd >= 0 && fd < poller->descriptors ? poller->places[fd] : -1;
}

static inline void ctrd_poller_remove(ctrd_poller *poller, int fd)
{
    int i = ctrd_poller_place(poller, fd), last = poller->count - 1, moved;
    if (i < 0)
        return;
    moved = poller->polled[last].fd;
    poller->places[moved < 0 ? -1 - moved : moved] = i;
    poller->places[fd] = -1;
    poller->polled[i] = poller->polled[last];
    poller->tags[i] = poller->tags[last];
    poller->wanted[i] = poller->wanted[last];
    poller->once[i] = poller->once[last];
    poller->count = last;
}

static inline void ctrd_poller_again(ctrd_poller *poller, int fd)
{
    int i = ctrd_poller_place(poller, fd);
    if (i >= 0) {
        poller->polled[i].fd = fd;
        poller->polled[i].events = poller->wanted[i];
    }
}

static inline int ctrd_poller_is_fine(const ctrd_poller *poller) { return poller == NULL; } /* poll has milliseconds */

static inline int ctrd_poller_ask(ctrd_poller *poller, int fd, unsigned events, uint64_t tag)
{
    (void)poller;
    (void)fd;
    (void)events;
    (void)tag;
    return ENOSYS;
}

/* Begins behind the last one told, so that among more than fit none is passed over for ever. */
static inline int ctrd_poller_wait(ctrd_poller *poller, ctrd_seen *seen, int room, int64_t nanoseconds)
{
    int milliseconds = ctrd_milliseconds(nanoseconds);
    int found = 0, left = poll(poller->polled, (nfds_t)poller->count, milliseconds);
    for (int n = 0; left > 0 && found < room && n < poller->count; n++) {
        struct pollfd *polled;
        int i;
        if (poller->next >= poller->count)
            poller->next = 0;
        i = poller->next++;
        polled = &poller->polled[i];
        if (polled->fd < 0 || !polled->revents)
            continue;
        left--;
        seen[found].tag = poller->tags[i];
        seen[found].events = (unsigned)polled->revents;
        if (polled->revents & POLLNVAL)
            seen[found].events |= POLLERR;
        found++;
        if (poller->once[i]) {
            polled->events = 0;
            if (polled->revents & (POLLERR | POLLHUP | POLLNVAL))
                polled->fd = -1 - polled->fd;
        }
    }
    return found;
}

#endif
