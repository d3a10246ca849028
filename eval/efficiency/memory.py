"""Peak memory of a block of code: from the CUDA allocator on a GPU, of the process elsewhere."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

#: Seconds between two looks at the process where the kernel keeps no resettable high-water mark.
_INTERVAL = 0.005

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


@dataclass
class PeakMemory:
    """Peak memory of one block; filled in when the block ends.

    Attributes:
        bytes: the highest use inside the block.
        before: use when the block began (weights, libraries, caches).
        source: what was measured. Figures of different sources are not comparable.
        reserved: for CUDA, the most the allocator held from the driver; else ``None``.
    """

    bytes: int = 0
    before: int = 0
    source: str = ""
    reserved: int | None = None

    @property
    def above_start(self) -> int:
        """Bytes the block needed on top of what was there before."""
        return max(0, self.bytes - self.before)


@contextmanager
def peak_memory(device: torch.device | str | None = None) -> Iterator[PeakMemory]:
    """Measure the peak memory of the ``with`` block.

    Args:
        device: a CUDA device reads its caching allocator, whose peak statistics are reset at entry. Anything
            else reads the resident set of this process: the kernel's high-water mark where it can be reset
            (Linux), else samples of it every few milliseconds, which may miss a shorter peak.

    Yields:
        The result, complete after the block (also when it raises).
    """
    if device is not None and torch.device(device).type == "cuda":
        measure = _cuda(torch.device(device))
    elif _reset_high_water_mark():
        measure = _high_water_mark()
    else:
        measure = _sampled()
    with measure as peak:
        yield peak


@contextmanager
def _cuda(device: torch.device) -> Iterator[PeakMemory]:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    peak = PeakMemory(before=torch.cuda.memory_allocated(device), source="CUDA allocator")
    try:
        yield peak
    finally:
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device)
        peak.reserved = torch.cuda.max_memory_reserved(device)


def _reset_high_water_mark() -> bool:
    """Reset the kernel's high-water mark of this process to its present use; false where that is
    impossible.
    """
    try:
        _CLEAR_REFS.write_text("5")
        return _read_high_water_mark() > 0
    except (OSError, LookupError):
        return False


def _read_high_water_mark() -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise LookupError("the kernel reports no VmHWM")


@contextmanager
def _high_water_mark() -> Iterator[PeakMemory]:
    peak = PeakMemory(before=psutil.Process().memory_info().rss, source="process RSS high-water mark")
    try:
        yield peak
    finally:
        peak.bytes = _read_high_water_mark()


@contextmanager
def _sampled() -> Iterator[PeakMemory]:
    process = psutil.Process()
    start = process.memory_info().rss
    peak = PeakMemory(start, start, f"process RSS, sampled every {_INTERVAL * 1000:g} ms")
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(_INTERVAL):
            peak.bytes = max(peak.bytes, process.memory_info().rss)

    watcher = threading.Thread(target=watch, name="hasten-peak-memory", daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        stop.set()
        watcher.join()
        peak.bytes = max(peak.bytes, process.memory_info().rss)
