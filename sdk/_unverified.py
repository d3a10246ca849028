"""The first look at a pipeline that nobody registered, through the adapter of a denoiser that is known.

The denoiser's class tells what its arguments mean; what the pipeline makes of its output, nobody has tried. One forward
of every run is therefore computed twice, from the pipeline's own arguments and from those that the adapter makes of the
very same latents. They have to agree to the last bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hasten._errors import UnsupportedError
from hasten._numerics import tensors_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from hasten._denoiser import DenoiserCall
    from hasten._target import Target

__all__ = ["SelfCheck", "unverified_note"]


def unverified_note(target: Target) -> str:
    """What the plan says of such a pipeline."""
    return (
        f"{target.name} is not registered: it uses the adapter of family {target.adapter.family!r}, chosen "
        f"by the class of its denoiser (unverified); the first forward of every call is compared with "
        f"stock"
    )


class SelfCheck:
    """Denoiser handler that compares the first forward of a run with the same forward through the adapter."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._done = False

    def __call__(self, call: DenoiserCall, proceed: Callable[[DenoiserCall], Any]) -> Any:
        """One forward.

        Raises:
            UnsupportedError: the adapter misreads the denoiser's arguments or output.
        """
        if not self._done:
            self._done = True
            self._compare(call)
        return proceed(call)

    def _compare(self, call: DenoiserCall) -> None:
        layout, pipe = self._target.layout, self._target.pipe
        try:
            latent = layout.decode(pipe, call.kwargs)
            again = layout.encode(pipe, call.kwargs, latent, call.step.noise)
            stock = call.sample(call.module(**call.kwargs))
            ours = call.sample(call.module(**again))
            ours = layout.encode_output(pipe, call.kwargs, layout.decode_output(pipe, call.kwargs, ours))
            pairs = zip(tensors_of(ours), tensors_of(stock), strict=True)
            same = all(torch.equal(one, other) for one, other in pairs)
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UnsupportedError(f"{self._told()}: {type(error).__name__}: {error}") from error
        if not same:
            raise UnsupportedError(f"{self._told()}: the same latents give a different prediction")

    def _told(self) -> str:
        return (
            f"{self._target.name} failed the self-check with the adapter of family {self._target.adapter.family!r}; "
            f"write an adapter for it (docs/plugins.md shows how)"
        )
