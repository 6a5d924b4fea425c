/*
 * ctrd-shim, eighth part: the log of output that nobody reads. It is raw, or a line of JSON for each line of output,
 * and begins anew when it is full. A full disk loses lines, as it does for everyone, but never stops the container.
 */
#include "shim.h"

static int log_fd = -1;
static long long log_size; /* bytes in the file */

/* 0 or an errno. */
int open_log(void)
{
	struct stat st;

	log_fd = open(opt.log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0600);
	if (log_fd < 0)
		return errno;
	log_size = fstat(log_fd, &st) == 0 ? st.st_size : 0;
	return 0;
}

/*
 * FILE becomes FILE.1, that FILE.2, and so on up to the last that is kept, which goes. Where that cannot be, the file
 * goes on: it is tried again when as much again has been written.
 */
static void begin_anew(void)
{
	char from[PATH_MAX], to[PATH_MAX];
	int fresh;

	log_size = 0;
	for (int k = opt.log_kept; k > 0; k--) {
		print(to, sizeof to, "%s.%d", opt.log, k);
		print(from, sizeof from, k > 1 ? "%s.%d" : "%s", opt.log, k - 1);
		if (rename(from, to) < 0 && k == 1)
			return;
	}
	fresh = open(opt.log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY, 0600);
	if (fresh >= 0) {
		close_fd(&log_fd);
		log_fd = fresh;
	}
}

static void append(const char *bytes, size_t size)
{
	size_t done = 0;

	if (opt.log_limit > 0 && log_size > 0 && log_size + (long long)size > opt.log_limit)
		begin_anew();
	while (done < size) {
		ssize_t put = write(log_fd, bytes + done, size - done);
		if (put < 0 && errno != EINTR)
			return;
		done += put > 0 ? (size_t)put : 0;
		log_size += put > 0 ? put : 0;
	}
}

/* ---- JSON ------------------------------------------------------------------------------------------------------------ */

/* How many bytes are one character of UTF-8, the shortest form of one that Unicode has; 0: they are none. */
static size_t character(const unsigned char *at, size_t left)
{
	size_t length = at[0] < 0x80 ? 1 : at[0] < 0xe0 ? 2 : at[0] < 0xf0 ? 3 : 4;

	if (length > left || (at[0] >= 0x80 && at[0] < 0xc2) || at[0] > 0xf4)
		return 0;
	for (size_t i = 1; i < length; i++)
		if ((at[i] & 0xc0) != 0x80)
			return 0;
	if ((at[0] == 0xe0 && at[1] < 0xa0) || (at[0] == 0xed && at[1] > 0x9f) || (at[0] == 0xf0 && at[1] < 0x90) ||
	    (at[0] == 0xf4 && at[1] > 0x8f))
		return 0;
	return length;
}

static char *put_digits(char *to, long number, int count)
{
	for (int i = count; i-- > 0; number /= 10)
		to[i] = (char)('0' + number % 10);
	return to + count;
}

/* "2026-11-30T05:12:21.123456789Z", by the Gregorian calendar; RFC 3339. */
static char *put_time(char *to)
{
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	long second = (long)(now.tv_sec % 86400);
	/* Years begin with March here, so that the day that some lack is their last; eras are of 400 years, all the same. */
	long day = (long)(now.tv_sec / 86400) + 719468, era = day / 146097, of_era = day % 146097;
	long year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
	long of_year = of_era - (365 * year + year / 4 - year / 100), month = (5 * of_year + 2) / 153;

	to = put_digits(to, era * 400 + year + (month >= 10), 4);
	*to++ = '-';
	to = put_digits(to, month < 10 ? month + 3 : month - 9, 2);
	*to++ = '-';
	to = put_digits(to, of_year - (153 * month + 2) / 5 + 1, 2);
	*to++ = 'T';
	to = put_digits(to, second / 3600, 2);
	*to++ = ':';
	to = put_digits(to, second / 60 % 60, 2);
	*to++ = ':';
	to = put_digits(to, second % 60, 2);
	*to++ = '.';
	to = put_digits(to, now.tv_nsec, 9);
	*to++ = 'Z';
	return to;
}

/*
 * One line of the log for *bytes*, or for as many of them as there is room for and up to the end of a line; returns how
 * many that were. What is no UTF-8 is written as a half of a surrogate pair, \udc80 and up, from which it can be had back:
 * that is what Python's "surrogateescape" does.
 */
static size_t append_json(const char *stream, const char *bytes, size_t size)
{
	static const char hex[] = "0123456789abcdef";
	enum { TAIL = 3, LONGEST = 6 };
	char line[BLOCK], *to = line;
	size_t done = 0;

	to += print(to, sizeof line, "{\"stream\":\"%s\",\"time\":\"", stream);
	to = put_time(to);
	to += print(to, sizeof line, "\",\"log\":\"");
	while (done < size && (size_t)(to - line) + LONGEST + TAIL <= sizeof line) {
		const unsigned char *at = (const unsigned char *)bytes + done;
		size_t length = character(at, size - done);
		if (length > 1 || (length == 1 && *at >= 0x20 && *at != '"' && *at != '\\' && *at != 0x7f)) {
			memcpy(to, at, length);
			to += length;
			done += length;
			continue;
		}
		done++;
		*to++ = '\\';
		if (*at == '"' || *at == '\\')
			*to++ = (char)*at;
		else if (*at == '\n' || *at == '\t' || *at == '\r')
			*to++ = *at == '\n' ? 'n' : *at == '\t' ? 't' : 'r';
		else {
			*to++ = 'u';
			*to++ = *at < 0x80 ? '0' : 'd';
			*to++ = *at < 0x80 ? '0' : 'c';
			*to++ = hex[*at >> 4];
			*to++ = hex[*at & 15];
		}
		if (*at == '\n')
			break;
	}
	memcpy(to, "\"}\n", TAIL);
	append(line, (size_t)(to - line) + TAIL);
	return done;
}

/* What has come out of that stream of init's, 0 for stdout and 1 for stderr. */
void log_output(int stream, const char *bytes, size_t size)
{
	if (!opt.log_json)
		append(bytes, size);
	for (size_t done = 0; opt.log_json && done < size;)
		done += append_json(stream ? "stderr" : "stdout", bytes + done, size - done);
}

/*
 * Init has ended: what it has written is in the log before anybody is told. What others add meanwhile, who hold its
 * output open, is not waited for.
 */
void log_the_rest(void)
{
	for (int k = 0; k < 2 && opt.unattended == LOG && !somebody_reads(); k++) {
		int fd = INIT->io.out_read[k], left = 0;
		char block[BLOCK];
		if (fd < 0 || ioctl(fd, FIONREAD, &left) < 0)
			continue;
		while (left > 0) {
			ssize_t n = read(fd, block, sizeof block);
			if (n <= 0)
				break;
			log_output(k, block, (size_t)n);
			left -= (int)n;
		}
	}
}
