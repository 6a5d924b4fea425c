"""Shapes of JSON documents: tells at the speed of C whether a value is JSON and nothing else, and of a certain shape.

A shape says yes or no, never why: who needs the reasons walks along the same shapes, whose attributes say what they ask
for, with a value that did not fit. No is also said of what is harmless but rare, such as a subclass of dict; who walks
finds no fault in it then. So the usual value, which fits, costs some 15 ns for each part of it, and no memory.

Text must be what an operating system takes: Unicode without lone surrogates and without a NUL.
"""

from libc.math cimport isfinite
from libc.string cimport memchr, memcmp, memset

from cpython.dict cimport PyDict_CheckExact
from cpython.float cimport PyFloat_CheckExact
from cpython.list cimport PyList_CheckExact
from cpython.long cimport PyLong_CheckExact
from cpython.tuple cimport PyTuple_CheckExact
from cpython.unicode cimport PyUnicode_CheckExact


cdef extern from "Python.h":
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except? NULL


cdef int MAX_DEPTH = 64                     # no document of use comes near
cdef Py_ssize_t MAX_VALUES = 1000000        # a list that holds itself twice would double on each level


cdef struct Walk:
    int depth           # how deep it is just now
    Py_ssize_t left     # so many values more are looked at


cdef inline bint enter(Walk *walk) noexcept:
    """Whether the parts of one more array or object may be looked at. `leave` comes after it if so."""
    if walk.depth >= MAX_DEPTH or walk.left <= 0:
        return False
    walk.depth += 1
    return True


cdef inline void leave(Walk *walk) noexcept:
    walk.depth -= 1


cdef int utf8(object text, const char **data, Py_ssize_t *size) except -1:
    """Whether *text* is one, and clean; then *data* and *size* are its UTF-8, which it keeps itself."""
    if not PyUnicode_CheckExact(text):
        return False
    try:
        data[0] = PyUnicode_AsUTF8AndSize(text, size)
    except UnicodeEncodeError:
        return False
    return memchr(data[0], 0, <size_t>size[0]) == NULL


cdef int plain(object value, Walk *walk) except -1:
    """Whether *value* is JSON, of whatever shape."""
    cdef const char *data
    cdef Py_ssize_t size
    cdef int good = True
    walk.left -= 1
    if PyUnicode_CheckExact(value):
        return utf8(value, &data, &size)
    if value is None or value is True or value is False or PyLong_CheckExact(value):
        return True
    if PyFloat_CheckExact(value):
        return isfinite(<double>value)
    if not enter(walk):
        return False
    if PyDict_CheckExact(value):
        for key, item in (<dict>value).items():
            if not (utf8(key, &data, &size) and plain(item, walk)):
                good = False
                break
    elif PyList_CheckExact(value):
        for item in <list>value:
            if not plain(item, walk):
                good = False
                break
    elif PyTuple_CheckExact(value):
        for item in <tuple>value:
            if not plain(item, walk):
                good = False
                break
    else:
        good = False
    leave(walk)
    return good


def is_plain(value):
    """Whether *value* is JSON and nothing else: dicts with text for keys, lists or tuples, text, numbers that are
    finite, bools and ``None``, at most 64 deep. No subclass of these is.
    """
    cdef Walk walk
    walk.depth, walk.left = 0, MAX_VALUES
    return bool(plain(value, &walk))


cdef class Shape:
    """What a value must be."""

    cdef int fits(self, object value, Walk *walk) except -1:
        raise NotImplementedError

    def holds(self, value):
        """Whether *value* is of this shape, and JSON and nothing else throughout (see `is_plain`)."""
        cdef Walk walk
        walk.depth, walk.left = 0, MAX_VALUES
        return bool(self.fits(value, &walk))


cdef class Text(Shape):
    """A text, and what it must be like; each is asked for only when it is given.

    *begins* with that; what comes then is made of the characters of *only*; it has at least *least* and at most *most*
    bytes; *after*, a character, comes in it, but not first; *like* says yes to it. *says* is all of that in words. With
    *empty* it may be empty, too.
    """

    cdef readonly str says
    cdef bint _empty
    cdef bytes _begins
    cdef bytes _after
    cdef object _like
    cdef Py_ssize_t _least
    cdef Py_ssize_t _most
    cdef bint _limited
    cdef unsigned char _allowed[256]

    def __init__(self, says="", *, begins="", only="", least=0, most=-1, after="", like=None, empty=False):
        self.says = says
        self._empty = empty
        self._begins = begins.encode()
        self._after = after.encode()
        self._like = like
        self._least = least
        self._most = most
        self._limited = bool(only)
        memset(self._allowed, 0, sizeof(self._allowed))
        for character in only.encode():
            self._allowed[<unsigned char>character] = 1

    def resembles(self, str value not None):
        """Whether *value* is what is asked for, clean or not."""
        cdef bytes text = value.encode("utf-8", "surrogatepass")
        return bool(self.follows(value, text, len(text)))

    cdef int fits(self, object value, Walk *walk) except -1:
        cdef const char *data
        cdef Py_ssize_t size
        walk.left -= 1
        return utf8(value, &data, &size) and self.follows(value, data, size)

    cdef int follows(self, object value, const char *data, Py_ssize_t size) except -1:
        cdef Py_ssize_t at, first = len(self._begins)
        if size == 0 and self._empty:
            return True
        if size < self._least or size < first or (self._most >= 0 and size > self._most):
            return False
        if first and memcmp(data, <const char *>self._begins, <size_t>first) != 0:
            return False
        if self._limited:
            for at in range(first, size):
                if not self._allowed[<unsigned char>data[at]]:
                    return False
        if self._after and (size < 2 or memchr(data, self._after[0], <size_t>size) <= <const void *>data):
            return False
        return self._like is None or bool(self._like(value))


cdef class Choice(Shape):
    """One of a few texts."""

    cdef readonly frozenset values

    def __init__(self, *values):
        self.values = frozenset(values)

    cdef int fits(self, object value, Walk *walk) except -1:
        walk.left -= 1
        return PyUnicode_CheckExact(value) and value in self.values


cdef class Number(Shape):
    """A whole number, from *least* to *most* where these are given."""

    cdef readonly object least
    cdef readonly object most

    def __init__(self, least=None, most=None):
        self.least = least
        self.most = most

    cdef int fits(self, object value, Walk *walk) except -1:
        walk.left -= 1
        if not PyLong_CheckExact(value):
            return False
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


cdef class Flag(Shape):
    """A bool."""

    cdef int fits(self, object value, Walk *walk) except -1:
        walk.left -= 1
        return value is True or value is False


cdef class Many(Shape):
    """An array, with at least *least* things in it, each of the shape *item*."""

    cdef readonly Shape item
    cdef readonly Py_ssize_t least

    def __init__(self, Shape item not None, Py_ssize_t least=0):
        self.item = item
        self.least = least

    cdef int fits(self, object value, Walk *walk) except -1:
        cdef int good = True
        walk.left -= 1
        if not enter(walk):
            return False
        if PyList_CheckExact(value):
            good = len(<list>value) >= self.least
            for one in <list>value:
                if not (good and self.item.fits(one, walk)):
                    good = False
                    break
        elif PyTuple_CheckExact(value):
            good = len(<tuple>value) >= self.least
            for one in <tuple>value:
                if not (good and self.item.fits(one, walk)):
                    good = False
                    break
        else:
            good = False
        leave(walk)
        return good


cdef class Map(Shape):
    """An object with any names, each of the shape *item*."""

    cdef readonly Shape item

    def __init__(self, Shape item not None):
        self.item = item

    cdef int fits(self, object value, Walk *walk) except -1:
        cdef const char *data
        cdef Py_ssize_t size
        cdef int good = True
        walk.left -= 1
        if not PyDict_CheckExact(value) or not enter(walk):
            return False
        for key, one in (<dict>value).items():
            if not (utf8(key, &data, &size) and self.item.fits(one, walk)):
                good = False
                break
        leave(walk)
        return good


cdef class Fields(Shape):
    """An object: *shapes* by name, those of *required* always there. ``None`` counts as not given; any others may be
    there too, if they are JSON.
    """

    cdef readonly dict shapes
    cdef readonly tuple required

    def __init__(self, dict shapes not None, tuple required=()):
        self.shapes = shapes
        self.required = required

    cdef int fits(self, object value, Walk *walk) except -1:
        cdef int good = True
        cdef dict given
        cdef const char *data
        cdef Py_ssize_t size
        walk.left -= 1
        if not PyDict_CheckExact(value) or not enter(walk):
            return False
        given = <dict>value
        for key, one in given.items():
            shape = self.shapes.get(key) if PyUnicode_CheckExact(key) else None
            if shape is None:
                good = utf8(key, &data, &size) and plain(one, walk)
            elif one is not None:
                good = (<Shape>shape).fits(one, walk)
            if not good:
                break
        if good:
            for name in self.required:
                if given.get(name) is None:
                    good = False
                    break
        leave(walk)
        return good
