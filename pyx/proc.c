/*
 * The C behind libctrd.proc, compiled as libctrd._proc by cffi (tools/build_proc.py has what Python sees of it).
 *
 * It holds what not every build of Python has: pidfds, two prctl settings, inotify, extended attributes, and a
 * posix_spawn whose child has an exact set of descriptors. Newer system calls go through syscall(2) and newer functions of the C library through
 * dlsym, so that one binary serves every glibc from 2.17 on; what is Linux-only answers ENOSYS elsewhere. It decides
 * nothing: arguments are checked and errors are worded in Python.
 *
 * Every function returns 0 or an errno; those that make something return it, or a negative errno. cffi lets go of the
 * GIL for the length of each call.
 */
#include "system.h"

#include <dlfcn.h>
#include <spawn.h>
#include <string.h>
#include <sys/wait.h>
#if !CTRD_PORTABLE
#include <dirent.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/xattr.h>
#endif

/* Which step failed, for the words of the error; "which" is the parent's descriptor for STAGE_DUP. */
enum { STAGE_NULL = 1, STAGE_DUP, STAGE_LIST, STAGE_SESSION, STAGE_PREPARE, STAGE_SPAWN };

/* Below this each number between the targets is closed unseen; past it a look at what is open is cheaper. */
enum { DENSE = 1024 };

#if !CTRD_PORTABLE
/* Headers older than the call: the number is the same on every machine that numbers from 0. */
#if !defined(__alpha__) && !defined(__mips__)
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#endif
#ifndef PR_SET_CHILD_SUBREAPER
#define PR_SET_CHILD_SUBREAPER 36
#define PR_GET_CHILD_SUBREAPER 37
#endif
#ifndef POSIX_SPAWN_SETSID
#define POSIX_SPAWN_SETSID 0x80 /* glibc 2.26 and musl; an older glibc answers EINVAL */
#endif
#endif

typedef int (*closefrom_fn)(posix_spawn_file_actions_t *, int);

static closefrom_fn find_closefrom(void)
{
    void *found = dlsym(RTLD_DEFAULT, "posix_spawn_file_actions_addclosefrom_np");
    closefrom_fn call;
    memcpy(&call, &found, sizeof call); /* ISO C has no cast from an object's address to a function's */
    return call;
}

static int ctrd_has_closefrom(void) { return find_closefrom() != NULL; }

static int is_target(int fd, const int *child, int count)
{
    for (int i = 0; i < count; i++)
        if (child[i] == fd)
            return 1;
    return 0;
}

static int close_one(posix_spawn_file_actions_t *actions, const int *child, int count, int fd)
{
    int flags = fcntl(fd, F_GETFD);
    if (flags < 0 || flags & FD_CLOEXEC || is_target(fd, child, count))
        return 0;
    return posix_spawn_file_actions_addclose(actions, fd);
}

/* Adds a close for each descriptor up to "last" that is open now, no target, and would outlive the exec. */
#if CTRD_PORTABLE
static int close_listed(posix_spawn_file_actions_t *actions, const int *child, int count, int last, int *stage)
{
    long open_max = sysconf(_SC_OPEN_MAX);
    int error = 0;
    *stage = STAGE_PREPARE;
    if (open_max < 0)
        open_max = 1 << 20; /* no limit is told */
    for (int fd = 0; !error && fd < open_max && fd <= last; fd++)
        error = close_one(actions, child, count, fd);
    return error;
}
#else
static int close_listed(posix_spawn_file_actions_t *actions, const int *child, int count, int last, int *stage)
{
    DIR *list = opendir("/proc/self/fd");
    struct dirent *entry;
    int error = 0;
    *stage = STAGE_LIST;
    if (list == NULL)
        return errno;
    while (!error && (errno = 0, entry = readdir(list)) != NULL) {
        char *end;
        long fd = strtol(entry->d_name, &end, 10);
        if (!*end && end != entry->d_name && fd <= last)
            error = close_one(actions, child, count, (int)fd);
    }
    if (!error)
        error = errno;
    closedir(list);
    return error;
}
#endif

/* "child" is sorted and holds at least 0, 1 and 2; "held" are our duplicates, all above the highest target,
   so that no dup2 writes over a descriptor that a later one reads. */
static int add_actions(posix_spawn_file_actions_t *actions, const int *child, const int *held, int count,
                       closefrom_fn closefrom, int *stage)
{
    int highest = child[count - 1], dense = highest < DENSE, error = 0;
    *stage = STAGE_PREPARE;
    for (int i = 0; i < count && !error; i++)
        error = posix_spawn_file_actions_adddup2(actions, held[i], child[i]);
    for (int fd = 3, at = 3; dense && fd < highest && !error; fd++)
        if (child[at] == fd)
            at++;
        else
            error = posix_spawn_file_actions_addclose(actions, fd);
    if (closefrom && !error)
        error = closefrom(actions, highest + 1);
    if (!error && (!closefrom || !dense))
        error = close_listed(actions, child, count, closefrom ? highest : 0x7fffffff, stage);
    return error;
}

/* None blocked and each at its default: Python ignores SIGPIPE, and an ignored signal outlives the exec. */
static int add_attributes(posix_spawnattr_t *attributes, int new_session, int *stage)
{
    short flags = POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF;
    sigset_t none, all;
    int error;
    sigemptyset(&none);
#if !CTRD_PORTABLE
    memset(&all, 0xff, sizeof all); /* with the two that glibc keeps to itself, and leaves ignored */
#else
    sigfillset(&all);
#endif
    sigdelset(&all, SIGKILL);
    sigdelset(&all, SIGSTOP);
    *stage = STAGE_PREPARE;
    if ((error = posix_spawnattr_setsigmask(attributes, &none)) ||
        (error = posix_spawnattr_setsigdefault(attributes, &all)))
        return error;
    if (new_session) {
        *stage = STAGE_SESSION;
#ifdef POSIX_SPAWN_SETSID
        flags |= POSIX_SPAWN_SETSID;
#else
        return ENOSYS;
#endif
    }
    return posix_spawnattr_setflags(attributes, flags);
}

static int hold(const int *child, const int *parent, int count, int *held, int *stage, int *which)
{
    int above = child[count - 1] + 1, null = -1, error = 0;
    *stage = STAGE_DUP;
    /* Before anything is opened: what is opened takes a free number, that one not open here may have. */
    for (int i = 0; i < count; i++)
        if (parent[i] >= 0 && fcntl(parent[i], F_GETFD) < 0) {
            *which = parent[i];
            return errno;
        }
    for (int i = 0; i < count && !error; i++) {
        int fd = parent[i];
        *which = fd;
        if (fd < 0) {
            *stage = STAGE_NULL;
            if (null < 0 && (null = open("/dev/null", O_RDWR | O_CLOEXEC)) < 0)
                return errno;
            *stage = STAGE_DUP;
            fd = null;
        }
        held[i] = fcntl(fd, F_DUPFD_CLOEXEC, above);
        if (held[i] < 0)
            error = errno;
    }
    if (null >= 0)
        close(null);
    return error;
}

static int ctrd_spawn(const char *path, char **argv, char **envp, const int *child, const int *parent,
                      int count, int new_session, int use_closefrom, int *pid, int *stage, int *which)
{
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    pid_t made = 0;
    closefrom_fn closefrom = use_closefrom ? find_closefrom() : NULL;
    int error, *held = malloc(sizeof *held * (size_t)count);
    *stage = STAGE_PREPARE;
    if (held == NULL)
        return ENOMEM;
    for (int i = 0; i < count; i++)
        held[i] = -1;
    if ((error = posix_spawn_file_actions_init(&actions)))
        goto free_held;
    if ((error = posix_spawnattr_init(&attributes)))
        goto destroy_actions;
    if (!(error = add_attributes(&attributes, new_session, stage)) &&
        !(error = hold(child, parent, count, held, stage, which)) &&
        !(error = add_actions(&actions, child, held, count, closefrom, stage))) {
        *stage = STAGE_SPAWN;
        /* Not always the "p" one: that of some systems hands a file without #! to sh. */
        error = strchr(path, '/') ? posix_spawn(&made, path, &actions, &attributes, argv, envp)
                                  : posix_spawnp(&made, path, &actions, &attributes, argv, envp);
    }
    *pid = (int)made;
    for (int i = 0; i < count; i++)
        if (held[i] >= 0)
            close(held[i]);
    posix_spawnattr_destroy(&attributes);
destroy_actions:
    posix_spawn_file_actions_destroy(&actions);
free_held:
    free(held);
    return error;
}

#if !CTRD_PORTABLE && defined(SYS_pidfd_open)
static int ctrd_pidfd_open(int pid)
{
    long fd = syscall(SYS_pidfd_open, pid, 0);
    return fd < 0 ? -errno : (int)fd;
}

static int ctrd_pidfd_send_signal(int pidfd, int sig)
{
    return syscall(SYS_pidfd_send_signal, pidfd, sig, NULL, 0) < 0 ? errno : 0;
}

/* Never waits. *pid is 0 when the process is our child and has not ended. P_PIDFD is 3 (Linux 5.4). */
static int ctrd_pidfd_reap(int pidfd, int *pid, int *code, int *status)
{
    siginfo_t info;
    memset(&info, 0, sizeof info);
    if (syscall(SYS_waitid, 3, pidfd, &info, WEXITED | WNOHANG, NULL) < 0)
        return errno;
    *pid = (int)info.si_pid;
    *code = info.si_code;
    *status = info.si_status;
    return 0;
}
#else
static int ctrd_pidfd_open(int pid) { (void)pid; return -ENOSYS; }
static int ctrd_pidfd_send_signal(int pidfd, int sig) { (void)pidfd; (void)sig; return ENOSYS; }
static int ctrd_pidfd_reap(int pidfd, int *pid, int *code, int *status)
{
    (void)pidfd; (void)pid; (void)code; (void)status;
    return ENOSYS;
}
#endif

#if !CTRD_PORTABLE
static int setting(int option, unsigned long value)
{
    return prctl(option, value, 0UL, 0UL, 0UL) < 0 ? errno : 0;
}
#else
enum { PR_SET_CHILD_SUBREAPER, PR_GET_CHILD_SUBREAPER, PR_SET_PDEATHSIG, PR_GET_PDEATHSIG };
static int setting(int option, unsigned long value)
{
    (void)option; (void)value;
    return ENOSYS;
}
#endif

static int ctrd_set_subreaper(int on) { return setting(PR_SET_CHILD_SUBREAPER, (unsigned long)on); }
static int ctrd_get_subreaper(int *on) { return setting(PR_GET_CHILD_SUBREAPER, (unsigned long)on); }
static int ctrd_set_pdeathsig(int sig) { return setting(PR_SET_PDEATHSIG, (unsigned long)sig); }
static int ctrd_get_pdeathsig(int *sig) { return setting(PR_GET_PDEATHSIG, (unsigned long)sig); }

/* Lazily, so that what still uses it does not keep us from removing what lies below. */
static int ctrd_unmount(const char *path)
{
#if !CTRD_PORTABLE
    return umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) < 0 ? errno : 0;
#else
    (void)path;
    return ENOSYS;
#endif
}

/* Opens the directory of that name in another, if it is one of the same mount and no symbolic link: openat2(2), since
   Linux 5.6. Its number is the same on every machine that numbers from 0. */
static int ctrd_open_below(int dir, const char *name)
{
#if !CTRD_PORTABLE && !defined(__alpha__) && !defined(__mips__)
    struct {
        unsigned long long flags, mode, resolve;
    } how = { O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC, 0, 0x05 }; /* NO_XDEV, NO_SYMLINKS */
    long fd = syscall(437, dir, name, &how, sizeof how);
    return fd < 0 ? -errno : (int)fd;
#else
    (void)dir;
    (void)name;
    return -ENOSYS;
#endif
}

/* The length of the attribute, which is in "value" then. */
static int ctrd_getxattr(int fd, const char *name, char *value, int size)
{
#if !CTRD_PORTABLE
    ssize_t length = fgetxattr(fd, name, value, (size_t)size);
    return length < 0 ? -errno : (int)length;
#else
    (void)fd; (void)name; (void)value; (void)size;
    return -ENOSYS;
#endif
}

#if !CTRD_PORTABLE
static int ctrd_inotify_init(void)
{
    int fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
    return fd < 0 ? -errno : fd;
}

static int ctrd_inotify_add(int fd, const char *path, unsigned int mask)
{
    int watch = inotify_add_watch(fd, path, mask);
    return watch < 0 ? -errno : watch;
}

static int ctrd_inotify_remove(int fd, int watch) { return inotify_rm_watch(fd, watch) < 0 ? errno : 0; }
#else
static int ctrd_inotify_init(void) { return -ENOSYS; }
static int ctrd_inotify_add(int fd, const char *path, unsigned int mask)
{
    (void)fd; (void)path; (void)mask;
    return -ENOSYS;
}
static int ctrd_inotify_remove(int fd, int watch) { (void)fd; (void)watch; return ENOSYS; }
#endif
