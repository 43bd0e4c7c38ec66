"""Memory: how much is free, whether something fits, the most that was used, and retaining freed blocks."""

import ctypes
import math
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from lightning_score.errors import require


def retain_freed_memory() -> None:
    """Lets the C library retain large freed blocks for the next step instead of returning them to the system.

    A training step on a CPU allocates hundreds of them; without this, page faults take up to a fifth of its time. It applies
    to the whole process, with glibc (Linux) only; elsewhere it does nothing.
    """
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(-3, 32 << 20)  # M_MMAP_THRESHOLD, at its upper limit
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def free_memory() -> float:
    """Bytes of main memory left for this process, by the machine and its control group."""
    found = [float(psutil.virtual_memory().available)]
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        found.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return min(found)


def require_room(nbytes: float, what: str, fix: str = "take fewer or smaller ones") -> None:
    """Refuses what would not fit into main memory: a system that overcommits would kill the process.

    Args:
        nbytes: the bytes that it takes at least.
        what: its name, for the message.
        fix: advice, for the message.

    Raises:
        InputError: there is less memory.
    """
    free = free_memory() if nbytes > 1 << 24 else math.inf
    require(nbytes <= free, f"{what}: takes at least {nbytes / 1e9:.3g} GB of memory, and {free / 1e9:.3g} are free; {fix}")


class PeakMemory:
    """Measures the most memory that this process has used since `begin`.

    Args:
        device: on which it computes.
    """

    def __init__(self, device: torch.device):
        self._device = device

    def begin(self) -> None:
        """Starts, after freed blocks were returned to the system: on Linux; elsewhere since the process began."""
        with suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes the present size (proc(5))
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)

    def gigabytes(self) -> dict[str, float]:
        """Resident main memory, and on a GPU its memory for tensors, in 1e9 bytes; empty where neither is known."""
        found = {}
        with suppress(OSError, ValueError, StopIteration):
            lines = Path("/proc/self/status").read_text().splitlines()
            found["memory_gb"] = 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1e9
        if self._device.type == "cuda":
            found["gpu_memory_gb"] = torch.cuda.max_memory_allocated(self._device) / 1e9
        return found
