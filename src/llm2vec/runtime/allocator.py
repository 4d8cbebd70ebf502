"""How the C library's allocator treats freed memory: a setting of the whole process, so only programs make it.

The command line does; importing the package, encoding and training do not. Imports nothing heavy.
"""

import ctypes
import sys

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # glibc's malloc.h: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
_NEVER = 2**31 - 1
_MOST = 32 * 2**20
"""The largest threshold that older versions take."""


def keep_freed_memory() -> None:
    """Let glibc keep what a training step or a batch frees for the next one.

    It gives large blocks back at once otherwise, and clearing them anew, page by page, costs a quarter to a third of a
    step on a CPU (docs/results.md). Memory at the peak stays the same; less of it is given back in between. Other C
    libraries stay as they are.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    if not mallopt(_MMAP_THRESHOLD, _NEVER):
        mallopt(_MMAP_THRESHOLD, _MOST)
    mallopt(_TRIM_THRESHOLD, _NEVER)
