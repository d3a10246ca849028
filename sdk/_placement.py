"""Where a pipeline runs and in which number format, where nobody says so: the GPU, in half precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from hasten._config import Precision
from hasten._errors import ConfigError, suggestion

if TYPE_CHECKING:
    import torch

__all__ = ["PRECISIONS", "Placement", "placement"]

PRECISIONS: tuple[str, ...] = get_args(Precision)


@dataclass(frozen=True)
class Placement:
    """A torch device (``"cuda:1"``) and the name of a number format (``"bfloat16"``)."""

    device: str
    dtype: str

    @property
    def torch_dtype(self) -> torch.dtype:
        """The number format as torch has it."""
        import torch

        found: torch.dtype = getattr(torch, self.dtype)
        return found


def placement(device: str | None = None, dtype: str | None = None) -> Placement:
    """The device and number format of a command.

    Args:
        device: what the user chose; else CUDA where there is one, else Apple's GPU, else the CPU.
        dtype: what the user chose; else float32 on a CPU and half precision elsewhere: bfloat16, which overflows
            nowhere that float32 does not, where the hardware computes in it, and float16 on older GPUs.

    Raises:
        ConfigError: there is no such device or format.
    """
    if dtype is not None and dtype not in PRECISIONS:
        raise ConfigError(
            f"dtype {dtype!r} cannot be used{suggestion(dtype, PRECISIONS)} Choose one of {', '.join(PRECISIONS)}."
        )
    chosen = _default_device() if device is None else _checked(device)
    return Placement(chosen, dtype or _default_dtype(chosen))


def _default_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _checked(device: str) -> str:
    import torch

    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} does not exist; write cpu, cuda, cuda:1 or mps") from error
    if kind.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise ConfigError(f"device {device!r} cannot be used: torch finds no CUDA GPU; use cpu")
        if (kind.index or 0) >= count:
            raise ConfigError(f"device {device!r} does not exist; available: cuda:0 to cuda:{count - 1}")
    if kind.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"device {device!r} cannot be used: torch finds no Apple GPU; use cpu")
    return device


def _default_dtype(device: str) -> str:
    import torch

    kind = torch.device(device)
    if kind.type == "cpu":
        return "float32"
    if kind.type == "cuda":
        with torch.cuda.device(kind):
            # Emulated bfloat16, which older GPUs offer too, is slower than float32.
            return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    return "float16"
