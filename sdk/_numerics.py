"""Watching denoiser outputs for NaN and infinity, and telling who brought them in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from hasten._errors import NumericalError
from hasten._recorder import Row

__all__ = ["Trail", "Watch", "tensors_of"]

Trail = list[tuple[str | None, Any]]
"""Outputs of one forward from the inside out, each with the technique it left; ``None`` is the denoiser itself."""


class Watch:
    """Checks every forward's result. On a CPU at once; on another device the answer is read when the next forward
    begins, where the noise level makes the host wait for the device anyway, so that it costs no wait of its own.
    """

    def __init__(self) -> None:
        self._pending: tuple[torch.Tensor, Row, Trail] | None = None

    def observe(self, row: Row, sample: Any, trail: Trail) -> None:
        """Note the result of a forward.

        Raises:
            NumericalError: it has NaN or infinity (on a CPU; elsewhere :meth:`settle` raises).
        """
        flag = _finite(sample)
        self._pending = (flag, row, trail)
        if flag.device.type == "cpu":
            self.settle()

    def settle(self) -> None:
        """Read the answer that is pending, if any.

        Raises:
            NumericalError: the forward it belongs to had NaN or infinity in its result.
        """
        if self._pending is None:
            return
        flag, row, trail = self._pending
        self._pending = None
        if not flag:
            raise NumericalError(_diagnosis(row, trail))


def tensors_of(sample: Any) -> Iterator[torch.Tensor]:
    """The tensors of a sample: itself, or the items of a list."""
    if isinstance(sample, torch.Tensor):
        yield sample
    else:
        for item in sample:
            yield from tensors_of(item)


def _finite(sample: Any) -> torch.Tensor:
    """A boolean scalar on the sample's device. The sum is finite only if every term is: one pass, no mask in memory.

    Summed in double precision on a CPU and in single precision elsewhere. A sum of finite terms that overflows single
    precision (3e38) is reported too: latents of that size are as broken.
    """
    total = None
    for tensor in tensors_of(sample):
        wide = torch.float64 if tensor.device.type == "cpu" else torch.float32
        part = torch.isfinite(tensor.detach().sum(dtype=wide))
        total = part if total is None else total & part
    return torch.tensor(True) if total is None else total


def _diagnosis(row: Row, trail: Trail) -> str:
    step = row.step
    where = f"step {step.index} (level {step.noise.time:.4f}, {step.branch}) of {row.denoiser}"
    culprit = next((owner for owner, output in trail if not _output_is_finite(output)), None)
    if culprit is not None:
        return (
            f"technique {culprit!r} returned NaN or infinity at {where}, from a finite denoiser output. "
            f"Disable it for this step with its options, or compute in float32 or bfloat16."
        )
    owners = ", ".join(repr(owner) for owner, _ in trail if owner) or "none"
    return (
        f"the denoiser returned NaN or infinity at {where}, at latent resolution {row.resolution}. Techniques around "
        f"it: {owners}. If the same call is clean in accel.paused(), a technique's arguments are the cause; "
        f"if not, compute in float32 or bfloat16."
    )


def _output_is_finite(output: Any) -> bool:
    sample = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
    return bool(_finite(sample))
