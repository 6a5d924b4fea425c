/* Faults that are planted: a run that does not report the one meant for it sees nothing, and proves nothing. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

static void *kept;
static int shared;

int overflow(int at)
{
	char *volatile bytes = malloc(8); /* volatile: else the compiler itself knows its size */
	memset(bytes, 1, 8);
	int value = bytes[at];
	free(bytes);
	return value;
}

int shift(int by)
{
	return 1 << by;
}

void leak(void)
{
	kept = malloc(4242);
	kept = NULL;
}

static void *count(void *nothing)
{
	for (int i = 0; i < 100000; i++)
		shared++;
	return nothing;
}

int race(void)
{
	pthread_t one, two;
	pthread_create(&one, NULL, count, NULL);
	pthread_create(&two, NULL, count, NULL);
	pthread_join(one, NULL);
	pthread_join(two, NULL);
	return shared;
}
