"""How the C library's allocator treats freed memory: a setting of the whole process.

Only programs change it: the command line does; importing the package, encoding and training do not.
This module imports nothing heavy.
"""

import ctypes
import sys

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD in glibc's malloc.h
_TRIM_THRESHOLD = -1  # M_TRIM_THRESHOLD in glibc's malloc.h
_NEVER = 2**31 - 1
_LARGEST = 32 * 2**20
"""The largest threshold that older versions accept."""


def keep_freed_memory() -> None:
    """Let glibc keep the memory that a training step or a batch frees, for the next one.

    Otherwise it gives large blocks back at once, and clearing them again, page by page, costs a
    quarter to a third of a step on a CPU (docs/results.md). Memory at the peak stays the same; less
    of it is given back in between. Other C libraries stay as they are.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    if not mallopt(_MMAP_THRESHOLD, _NEVER):
        mallopt(_MMAP_THRESHOLD, _LARGEST)
    mallopt(_TRIM_THRESHOLD, _NEVER)
