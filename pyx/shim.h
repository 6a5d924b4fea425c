/*
 * What the parts of ctrd-shim share: its state, all of it static, and what each part offers the others.
 *
 *   shim.c          the peers and their requests, the loop
 *   shim_options.c  the command line, and the set-up
 *   shim_runtime.c  the OCI runtime, its children, the exit and its record
 *   shim_children.c which processes are ours, and how they ended before anybody knew them
 *   shim_exec.c     further processes
 *   shim_stdio.c    fifos, terminals, output that nobody reads
 *   shim_log.c      the log of output that nobody reads
 *   shim_keep.c     a process of its own: what is unread of containers that are gone
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
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { STARTER_FD = 3, STATE_FD = 4, SEALED_FD = 5, MAX_PEERS = 512, REQUESTS = 16, MAX_ARGS = 64, MAX_PROCESSES = 64 };
enum { PATIENCE = 2000 }; /* milliseconds */
enum { PACKET = 4096, REQUEST = 3 * PATH_MAX + 512, LIST = 8192, RECORD = 240, BLOCK = 4096, NAME = 80, TOKEN = 24 };
/* Where tables and buffers lie: apart from all that is small, so that a shim at rest has touched few pages of memory. */
#define APART __attribute__((section(".bss.tables")))

enum op { NOTHING, START, PAUSE, RESUME, DELETE, END, KILL_ALL, UNDO, EXEC, CALL };
enum state { STARTING, RUNNING, PAUSED, STOPPED };
enum unattended { HOLD, DISCARD, LOG };

#define SOCKET_NAME "shim.sock"
#define TTY_NAME "tty.sock"
#define RECORD_NAME "exit.json"
#define RECORD_TEMP "exit.tmp"
#define PID_NAME "pid"
#define LOG_NAME "runtime.log"
#define KEEPER_NAME "keep.sock"

/* What the command line said. */
struct options {
	const char *id, *state, *bundle, *root, *memory, *cgroup, *log, *restore, *stdio[3];
	const char *uid_map, *gid_map; /* see hide_unified_without_root */
	char *runtime[MAX_ARGS];
	int runtime_argc;
	bool terminal, log_json, hide_unified, kill_rest, no_pivot, undo, auto_remove, attended, sealed, grow, flush;
	enum unattended unattended;
	long long log_limit; /* 0: none */
	int log_kept;
};
extern struct options opt;

/* Bytes on their way between the terminal and a fifo. What does not fit stays in the kernel, where it holds back. */
struct pipe_buffer {
	int from, to; /* -1: closed */
	size_t start, end;
	char *bytes; /* BLOCK of them */
};

/* Our ends of a process's fifos, the ends that the runtime takes over, and its terminal. -1: none. */
struct streams {
	int stdin_write, out_read[2], child_end[3];
	int tty_listener, master;
	bool terminal;
	char tty_name[24];
	struct pipe_buffer tty_out, tty_in;
};

/* A process of the container. Its place in the table is free while it has no name; the first is init's. */
struct process {
	char name[NAME], token[TOKEN]; /* token: what its files in the state directory are called by, and its starter alone knows */
	pid_t pid, runtime;	       /* runtime: the one that starts it, 0 when that has ended */
	int starter;		       /* the peer who is told how that went, -1: nobody */
	enum state state;
	bool doomed, given_up;	       /* it was, or is to be, sent SIGKILL; nobody will collect its end */
	bool over;		       /* of init: reaped, and its end waits until those of the others were told */
	int record_fd;		       /* where its exit will be written, allocated beforehand */
	char record[RECORD];	       /* the exit as it is announced */
	unsigned long long ended;      /* which end this was: of those that nobody collects the oldest are given up */
	struct streams io;
};
extern struct process processes[MAX_PROCESSES]; /* only the first process_count have ever been used, and touched */
extern int process_count;
#define INIT (&processes[0])
extern bool oom_killed;

/* The runtime, when one is under way. Only one is at a time; a request for another waits in its peer's `want`. */
struct runtime {
	pid_t pid; /* 0: none */
	enum op op;
	int peer; /* who is told, -1: nobody */
};
extern struct runtime runtime;

/* A directory that is being read. Its first use is with all zero. */
struct entries {
	long size, at;
	char block[BLOCK] __attribute__((aligned(8)));
};

struct peer {
	int fd; /* -1: free */
	bool watches, reads;
	enum op want;
	int number;	   /* of the signal, for KILL_ALL */
	char token[TOKEN]; /* of the file with the runtime's words, for CALL */
};
extern int listener, signals;
extern struct peer peers[MAX_PEERS]; /* only the first peer_count have ever been used, and touched */
extern int peer_count;

extern int null_fd;
extern int oom_fd, oom_control; /* v1: an eventfd and memory.oom_control; v2: only memory.events */
extern bool oom_is_v2, ending;
extern char packet[PACKET]; /* for replies that are put together */

/* shim_text.c */
int print(char *to, size_t size, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* shim.c */
void close_fd(int *fd);
void say(int peer, const char *text);
void say_errno(int peer, int number);
void announce(const char *event);
void drop_peer(int peer);
bool somebody_reads(void);
_Noreturn void die(const char *call, const char *what);

/* shim_options.c */
void parse(int argc, char **argv);
void set_up(void);
int hide_unified(void);

/* shim_runtime.c */
pid_t call_runtime(const char *const verb[], const int stdio[3], const char *log);
void leave_in(const char *log, const char *text);
void say_failed(int peer, int code, const char *log);
void spawn_runtime(enum op op, int peer);
void reap(void);
void remove_if_done(void);
void look_for_oom(void);
bool remove_cgroups(void);
void forget_sealed(void);
void init_ended(void);
bool is_so_already(enum op op);

/* shim_children.c */
const char *next_entry(int dir, struct entries *in);
pid_t read_pid(const char *name);
bool is_ours(pid_t pid);
bool was_reaped(pid_t pid, int *status);
void remember_stray(pid_t pid, int status);
void forget_strays(void);
void end_children(void);

/* shim_exec.c */
struct process *find_process(const char *name);
void start_process(int peer, const char *text, size_t size);
void cancel_process(int peer, const char *token, bool at_once);
void forget_process(int peer, const char *name);
void list_processes(int peer);
void tell_ends(int peer);
bool exec_ended(pid_t pid, int status);
bool process_ended(pid_t pid, int status);
int starting_processes(void);
void settle_init(void);
int patience(void);
void remove_process_files(void);

/* shim_stdio.c */
void no_streams(struct streams *io);
int open_stdio(struct streams *io, const char *const paths[3], const char **failed);
void close_stdio(struct streams *io);
void receive_terminal(struct streams *io);
void hand_over(int peer, const struct streams *io);
bool pump(struct pipe_buffer *b, bool readable);
bool type_end_of_file(struct pipe_buffer *b);
bool drain(int stream);
void flush_terminal(struct streams *io);
void flush_terminals(void);

/* shim_log.c */
int open_log(void);
void log_output(int stream, const char *bytes, size_t size);
void log_the_rest(void);

/* shim_keep.c */
_Noreturn void keep_unread(void);

/* Both parts that write a record: the room for it before the process starts, so that a full disk cannot lose an exit. */
int make_record(const char *name);
void finish_record(int *fd, const char *text, const char *temporary, const char *name);
int listen_at(const char *name, int type);
