"""Watching denoiser outputs for NaN and infinity, and telling who brought them in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from hasten._errors import NumericalError
from hasten._recorder import Row

__all__ = ["Computed", "Trail", "Watch", "tensors_of"]


@dataclass(frozen=True)
class Computed:
    """A computation of the denoiser itself.

    Args:
        alone: computes it again, without the techniques inside the denoiser.
        results: owner, layer and sum of every attention handler's result in order, where several techniques have some.
    """

    alone: Callable[[], Any]
    results: Sequence[tuple[str, str, torch.Tensor]] = ()


Trail = list[tuple[str | Computed, Any]]
"""Outputs of one forward from the inside out, each with the technique it left, or as the denoiser's own."""


class Watch:
    """Checks every forward's result. On a CPU at once; on another device the answer is read when the next forward
    begins, where the noise level makes the host wait for the device anyway, so that it costs no wait of its own.

    Args:
        inside: techniques with handlers inside the denoiser (of attention, of modules).
    """

    def __init__(self, inside: Sequence[str] = ()) -> None:
        self._inside = tuple(dict.fromkeys(inside))
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
            raise NumericalError(_diagnosis(row, trail, self._inside))


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


def _diagnosis(row: Row, trail: Trail, inside: Sequence[str]) -> str:
    step = row.step
    where = f"step {step.index} (level {step.noise.time:.4f}, {step.branch}) of {row.denoiser}"
    source = next((source for source, output in trail if not _output_is_finite(output)), None)
    if isinstance(source, str):
        return (
            f"technique {source!r} returned NaN or infinity at {where}, although the denoiser's output is "
            f"finite. Disable it for this step with its options, or compute in float32 or bfloat16."
        )
    if source is not None and inside and _finite_alone(source):
        return (
            f"{_inside_culprit(source, inside)} at {where}: the same forward without the techniques inside the "
            f"denoiser is finite. Disable it for this step with its options, or compute in float32 or bfloat16."
        )
    around = [owner for owner, _ in trail if isinstance(owner, str)]
    owners = ", ".join(map(repr, dict.fromkeys([*around, *inside]))) or "none"
    return (
        f"the denoiser returned NaN or infinity at {where}, at latent resolution {row.resolution}. Techniques "
        f"that changed its arguments: {owners}. If the same call works in accel.paused(), a technique "
        f"is the cause; otherwise compute in float32 or bfloat16."
    )


def _inside_culprit(computed: Computed, inside: Sequence[str]) -> str:
    for owner, layer, total in computed.results:
        if not bool(torch.isfinite(total)):
            return f"technique {owner!r} returned NaN or infinity from its attention handler of {layer}"
    if len(inside) == 1:
        return f"technique {inside[0]!r} brought NaN or infinity into the denoiser"
    return f"one of the techniques {', '.join(map(repr, inside))} brought NaN or infinity into the denoiser"


def _finite_alone(computed: Computed) -> bool:
    try:
        return _output_is_finite(computed.alone())
    except RuntimeError:  # too little memory, or an argument that was used up: nothing is known then
        return False


def _output_is_finite(output: Any) -> bool:
    sample = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
    return bool(_finite(sample))
