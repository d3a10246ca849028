"""What handlers return: the right kind of tensor, or an error that names the technique. Values are never read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hasten._errors import PluginError
from hasten._plugins import host

if TYPE_CHECKING:
    from hasten._attention import AttentionCall
    from hasten._denoiser import DenoiserCall

__all__ = ["Predictions", "check_attention"]


class Predictions:
    """Learns from the denoiser's own forwards what a prediction looks like, and checks those of handlers against it.

    An axis that is as long in the prediction as in the latents follows the latents at another size; any other axis
    (channels of a learned variance, of an image model's condition) keeps its length.
    """

    def __init__(self) -> None:
        self._axes: tuple[tuple[int, int], ...] = ()
        self._like: Tensor | None = None

    def learn(self, call: DenoiserCall, output: object) -> None:
        """Note a forward of the denoiser itself."""
        latents, predicted = _tensors(_latents(call)), _tensors(_sample(call, output))
        if latents and predicted and latents[0].ndim == predicted[0].ndim:
            self._axes = tuple(zip(latents[0].shape, predicted[0].shape))
        else:
            self._axes = ()
        self._like = predicted[0] if predicted else None

    def check(self, owner: str, call: DenoiserCall, output: object) -> None:
        """Look at what a handler returned for ``call``.

        Raises:
            PluginError: it is no prediction, not of floating point, or of another shape or device than the denoiser's.
        """
        predicted = _tensors(_sample(call, output))
        place = f"from its denoiser handler at step {call.step.index} of {call.denoiser}"
        if not predicted:
            raise PluginError(
                f"{_title(owner)} returned {_named(output)} {place}; a denoiser returns a prediction"
            )
        like = self._like
        for tensor, expected in zip(predicted, self._shapes(call, len(predicted))):
            if like is not None and not like.is_floating_point():
                continue
            if expected is not None and tuple(tensor.shape) != expected:
                wanted: object = expected
            elif like is not None and tensor.device != like.device:
                wanted = like.device
            elif not tensor.is_floating_point():
                wanted = "a floating-point type"
            else:
                continue
            raise PluginError(f"{_title(owner)} returned {_named(tensor)} {place}; expected {wanted}")

    def _shapes(self, call: DenoiserCall, count: int) -> Sequence[tuple[int, ...] | None]:
        latents = _tensors(_latents(call))
        if len(latents) != count or len(self._axes) != latents[0].ndim:
            return (None,) * count
        return [
            tuple(now if before == after else after for now, (before, after) in zip(item.shape, self._axes))
            for item in latents
        ]


def check_attention(owner: str, call: AttentionCall, output: object) -> None:
    """Look at what an attention handler returned for ``call``.

    Raises:
        PluginError: it is not a floating-point tensor of (B, heads, queries, value dim).
    """
    query, value = call.query, call.value
    expected = (max(len(query), len(value)), *query.shape[1:-1], value.shape[-1])
    if isinstance(output, Tensor) and output.shape == expected and output.is_floating_point():
        return
    raise PluginError(
        f"{_title(owner)} returned {_named(output)} from its attention handler at {call.layer}, step "
        f"{call.step.index}; expected a floating-point tensor of shape {expected}"
    )


def _title(owner: str) -> str:
    return host().culprit("technique", owner).title


def _latents(call: DenoiserCall) -> Any:
    return next(iter(call.kwargs.values()), None)  # the first parameter of every denoiser


def _sample(call: DenoiserCall, output: object) -> Any:
    try:
        return call.sample(output)
    except (AttributeError, IndexError):
        return None


def _tensors(sample: Any) -> list[Tensor]:
    """A tensor, or the tensors of a list (a few families), as a list; empty for anything else."""
    items = [sample] if isinstance(sample, Tensor) else sample
    good = isinstance(items, (list, tuple)) and all(isinstance(item, Tensor) for item in items)
    return list(items) if good else []


def _named(output: object) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of {tuple(output.shape)}, {output.dtype}, on {output.device}"
    return f"{type(output).__name__!r}"
