"""The C library's memory allocator, for processes that take and drop large arrays all the time."""

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # M_* of glibc's malloc.h


def keep_freed_memory() -> None:
    """Lets glibc's malloc use the memory of large dropped arrays again, for the whole process from here on.

    By default it returns them to the system at once, and the system clears every page of the next ones: a third of the
    processor time of a conversion. Does nothing with other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_ARENA_MAX, 1)):
            mallopt(option, value)
