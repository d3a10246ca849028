"""What a figure was measured on."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["describe_machine"]


def describe_machine() -> dict[str, str | int]:
    """Processor, accelerator, threads and the versions that decide speed, ready for JSON."""
    import diffusers
    import torch

    machine: dict[str, str | int] = {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return machine


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
