"""``mode="continuous"``: the forwards of some noise levels run on a small latent, unseen by the pipeline."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from hasten.extend import LatentSize
from hasten.plugins.bottleneck.config import ContinuousConfig
from hasten.plugins.bottleneck.levels import Resolutions, resolve
from hasten.plugins.bottleneck.math import expand_prediction, low_state, path_of

if TYPE_CHECKING:
    from hasten.extend import DenoiserCall, Target

__all__ = ["VirtualResolution"]


class VirtualResolution:
    """Denoiser handler that replaces a forward at a low level by one on a small latent.

    It decides by noise level alone, so guidance may call the denoiser any number of times per step, and it keeps no
    state between forwards. The last step of a run is never low: what it leaves out, no later step puts in.

    Args:
        name: the technique's name, for reports.
        config: its options.
        target: the pipeline.
    """

    def __init__(self, name: str, config: ContinuousConfig, target: Target) -> None:
        self._name = name
        self._config = config
        self._target = target
        self._resolutions: dict[LatentSize, Resolutions] = {}

    def __call__(self, call: DenoiserCall, proceed: Callable[[DenoiserCall], Any]) -> Any:
        """One forward, at the resolution of its noise level."""
        layout, pipe, level = self._target.layout, call.run.pipe, call.step.noise
        prediction = layout.prediction(pipe)
        low = self._resolutions_of(call.step.size).low_at(level, prediction)
        if low is None or call.run.is_last_step:
            call.run.record(self._name, phase="high")
            return proceed(call)
        call.run.record(self._name, phase="low")
        latent = layout.decode(pipe, call.kwargs)
        # Everything between the pipeline's own tensors is at least single precision, and rounded once at the end.
        x = latent.to(torch.promote_types(latent.dtype, torch.float32))
        y, low_level = low_state(x, level, low, path_of(prediction))
        low_call = call.replace_kwargs(layout.encode(pipe, call.kwargs, y, low_level))
        output = proceed(low_call)
        sample = layout.decode_output(pipe, low_call.kwargs, call.sample(output)).to(x.dtype)
        result = expand_prediction(prediction, x, level, y, low_level, sample, self._config.taper)
        return call.with_sample(output, layout.encode_output(pipe, call.kwargs, result))

    def _resolutions_of(self, size: LatentSize) -> Resolutions:
        if size not in self._resolutions:
            self._resolutions[size] = resolve(self._config, self._target, size)
        return self._resolutions[size]
