/*
 * Before all that Cython writes for the limited API (setup.py has it included). That API does not tell the flags of code
 * objects, so what Cython writes imports `inspect`, to ask for them, when each of our modules is imported: ten modules
 * more, and milliseconds of every `ctrd run`. They are the same in every CPython, and documented at `inspect`; so a module
 * that has nothing but them is given for it.
 */
#ifndef CTRD_LIMITED_H
#define CTRD_LIMITED_H

#ifndef PY_SSIZE_T_CLEAN
#define PY_SSIZE_T_CLEAN
#endif
#include "Python.h"
#include <string.h>

static inline PyObject *ctrd_import(const char *name)
{
    static const struct {
        const char *name;
        long value;
    } known[] = { { "CO_OPTIMIZED", 0x0001 },   { "CO_NEWLOCALS", 0x0002 }, { "CO_VARARGS", 0x0004 },
                  { "CO_VARKEYWORDS", 0x0008 }, { "CO_GENERATOR", 0x0020 }, { "CO_COROUTINE", 0x0080 },
                  { "CO_ASYNC_GENERATOR", 0x0200 } };
    PyObject *flags;
    if (strcmp(name, "inspect"))
        return PyImport_ImportModule(name);
    flags = PyModule_New("flags");
    for (size_t i = 0; flags && i < sizeof known / sizeof *known; i++)
        if (PyModule_AddIntConstant(flags, known[i].name, known[i].value))
            Py_CLEAR(flags);
    return flags;
}
#define PyImport_ImportModule ctrd_import

#endif
