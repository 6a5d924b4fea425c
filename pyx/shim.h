/*
 * What the three parts of ctrd-shim share: its state, all of it static, and what each part offers the others.
 *
 *   shim.c          the command line, the peers and their requests, the loop
 *   shim_runtime.c  the OCI runtime, its children, the exit and its record
 *   shim_stdio.c    fifos, the terminal, output that nobody reads
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { STARTER_FD = 3, STATE_FD = 4, MAX_PEERS = 512, REQUESTS = 16, MAX_ARGS = 64 };
enum { PACKET = 4096, RECORD = 160, BLOCK = 4096 };
enum op { NOTHING, START, PAUSE, RESUME, DELETE, END, KILL_REST, UNDO };
enum state { STARTING, RUNNING, PAUSED, STOPPED };
enum unattended { HOLD, DISCARD, LOG };

#define SOCKET_NAME "shim.sock"
#define TTY_NAME "tty.sock"
#define RECORD_NAME "exit.json"
#define RECORD_TEMP "exit.tmp"
#define PID_NAME "pid"
#define LOG_NAME "runtime.log"

/* What the command line said. */
struct options {
	const char *id, *state, *bundle, *root, *memory, *log;
	char *runtime[MAX_ARGS];
	int runtime_argc;
	bool in, out, err, terminal, hide_unified, kill_rest, no_pivot, undo, auto_remove, attended;
	enum unattended unattended;
};
extern struct options opt;

/* The container's init. */
struct init {
	pid_t pid;
	enum state state;
	bool oom, doomed; /* doomed: it was sent SIGKILL, so nobody may freeze it any more */
	char record[RECORD]; /* the exit as it is announced: "exit CODE OOM SECONDS NANOSECONDS" */
};
extern struct init init;

/* The runtime, when one is under way. Only one is at a time; a request for another waits in its peer's `want`. */
struct runtime {
	pid_t pid; /* 0: none */
	enum op op;
	int peer; /* who is told, -1: nobody */
};
extern struct runtime runtime;

struct peer {
	int fd; /* -1: free */
	bool watches, reads;
	enum op want;
};
extern struct peer peers[MAX_PEERS]; /* only the first peer_count have ever been used, and touched */
extern int peer_count;

/* Bytes on their way between the terminal and a fifo. What does not fit stays in the kernel, where it holds back. */
struct pipe_buffer {
	int from, to; /* -1: closed */
	size_t start, end;
	char bytes[BLOCK];
};
extern struct pipe_buffer tty_out, tty_in;

/* Our ends of the fifos, and the ends that the runtime takes over. -1: none. */
extern int stdin_write, out_read[2], child_end[3];
extern int tty_listener, master, null_fd, log_fd;
extern int oom_fd, oom_control; /* v1: an eventfd and memory.oom_control; v2: only memory.events */
extern int record_fd;		/* of exit.tmp, allocated beforehand */
extern bool oom_is_v2, ending;
extern char packet[PACKET]; /* for replies that are put together */

/* shim.c */
void close_fd(int *fd);
void say(int peer, const char *text);
void say_errno(int peer, int number);
void announce(const char *event);
void drop_peer(int peer);
bool somebody_reads(void);
_Noreturn void die(const char *call, const char *what);

/* shim_runtime.c */
void spawn_runtime(enum op op, int peer);
void allocate_record(void);
void look_for_oom(void);
void reap(void);
void remove_if_done(void);

/* shim_stdio.c */
void open_stdio(void);
void receive_terminal(void);
void hand_over(int peer);
bool pump(struct pipe_buffer *b, bool readable);
bool type_end_of_file(struct pipe_buffer *b);
bool drain(int fd);
