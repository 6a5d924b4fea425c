/*
 * Text put together: snprintf(3) for what the shim says. The C library's own is a fifth of a static shim, most of it for
 * numbers with a point, and a running shim keeps it in memory.
 */
#include "shim.h"
#include <stdarg.h>

static char *put_number(char *end, long long number)
{
	unsigned long long rest = number < 0 ? 0ull - (unsigned long long)number : (unsigned long long)number;

	do
		*--end = (char)('0' + rest % 10);
	while (rest /= 10);
	if (number < 0)
		*--end = '-';
	return end;
}

/* As snprintf, and returns what it returns, for %s, %d, %ld, %lld and %%, without widths. */
int print(char *to, size_t size, const char *format, ...)
{
	char digits[24], *last = digits + sizeof digits - 1;
	size_t all = 0;
	va_list given;

	*last = 0;
	va_start(given, format);
	for (; *format; format++) {
		const char *part = format;
		size_t length = 1;
		int longs = 0;
		if (*format == '%') {
			while (*++format == 'l')
				longs++;
			if (*format == 's')
				part = va_arg(given, const char *);
			else if (*format == 'd')
				part = put_number(last, longs == 0   ? va_arg(given, int)
							: longs == 1 ? va_arg(given, long)
								     : va_arg(given, long long));
			else
				part = "%";
			length = strlen(part);
		}
		for (size_t i = 0; i < length; i++, all++)
			if (all + 1 < size)
				to[all] = part[i];
	}
	va_end(given);
	if (size)
		to[all < size ? all : size - 1] = 0;
	return (int)all;
}
