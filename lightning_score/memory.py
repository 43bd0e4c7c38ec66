"""Main memory: how much is free, whether something fits, and keeping what was freed."""

import ctypes
import math
from contextlib import suppress
from pathlib import Path

from lightning_score.errors import require


def keep_freed_memory() -> None:
    """Lets the C library keep large blocks that are freed, for the next step, instead of giving them back to the system.

    A training step on a CPU frees and takes hundreds of them, and without this spends up to a fifth of its time in page
    faults. It concerns the process as a whole, and glibc (Linux) alone; elsewhere nothing happens.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its upper limit
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def free_memory() -> float:
    """Bytes of main memory that this process can still take, of the machine and of its control group; infinity where the
    system does not say."""
    found = [math.inf]
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]))
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(found)


def require_room(nbytes: float, what: str, fix: str = "take fewer or smaller ones") -> None:
    """Refuses what would not fit into main memory, before it is begun: a system that overcommits would end the program.

    Args:
        nbytes: how much it takes at least.
        what: that, for the message.
        fix: what to do about it.

    Raises:
        InputError: there is less memory.
    """
    free = free_memory() if nbytes > 1 << 24 else math.inf
    require(nbytes <= free, f"{what}: takes at least {nbytes / 1e9:.3g} GB of memory, and {free / 1e9:.3g} are free; {fix}")
