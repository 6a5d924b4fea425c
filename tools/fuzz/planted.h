/*
 * A word of four bytes in the builds of the fuzzer alone: whoever finds it among four thousand million has been led there by
 * the coverage of the compiled code around it. A target that does not, when it is asked to (CTRD_PLANTED), is blind.
 * Included before everything else. In the Cython modules it lies where every text of a document comes by, in the shim
 * (requests.c) where a request does.
 */
#ifndef CTRD_PLANTED_H
#define CTRD_PLANTED_H

#ifdef CTRD_PLANTED_PYTHON
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#endif
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CTRD_FOUND = 91 }; /* the exit code; libFuzzer's own for a crash is another */

static inline void ctrd_planted(const char *text, size_t size)
{
	uint32_t word;

	if (size < sizeof word)
		return;
	memcpy(&word, text, sizeof word);
	if (word == 0x44725463 && getenv("CTRD_PLANTED"))
		_exit(CTRD_FOUND);
}

#ifdef CTRD_PLANTED_PYTHON
static inline const char *ctrd_planted_utf8(PyObject *text, Py_ssize_t *size)
{
	const char *data = PyUnicode_AsUTF8AndSize(text, size);
	if (data)
		ctrd_planted(data, (size_t)*size);
	return data;
}
#define PyUnicode_AsUTF8AndSize ctrd_planted_utf8
#endif
#endif
