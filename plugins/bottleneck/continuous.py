"""``mode="continuous"``: forwards at some noise levels run on smaller latents; the pipeline does not notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from hasten.extend import LatentSize
from hasten.plugins.bottleneck.config import ContinuousConfig
from hasten.plugins.bottleneck.learned import autoencoder_of, keep, may_differ, measure
from hasten.plugins.bottleneck.levels import Resolutions, resolve, spectrum_for
from hasten.plugins.bottleneck.math import clean_estimate, expand_prediction, low_state, path_of

if TYPE_CHECKING:
    from hasten.extend import DenoiserCall, Prediction, Target

__all__ = ["VirtualResolution"]


class VirtualResolution:
    """Denoiser handler that replaces forwards at some noise levels by forwards on smaller latents.

    The resolution depends on the noise level alone, so guidance may call the denoiser any number of times per step. No
    state is kept between forwards. The last step always runs at full resolution, because no later step could add the
    detail it leaves out. If the spectrum of the latents is unknown, it is measured at the end of the first run.

    Args:
        name: name of the technique, for reports.
        config: its options.
        target: the pipeline.
    """

    def __init__(self, name: str, config: ContinuousConfig, target: Target) -> None:
        self._name = name
        self._config = config
        self._target = target
        self._resolutions: dict[LatentSize, Resolutions] = {}
        self._learner = _Learner.of(name, config, target)

    def __call__(self, call: DenoiserCall, proceed: Callable[[DenoiserCall], Any]) -> Any:
        """Run one forward, at the resolution of its noise level. Returns the denoiser's output at full size."""
        prediction = self._target.layout.prediction(call.run.pipe)
        low = self._resolutions_of(call.step.size).low_at(call.step.noise, prediction)
        if low is not None and not call.run.is_last_step:
            call.run.record(self._name, phase="low")
            return self._low(call, proceed, low, prediction)
        call.run.record(self._name, phase="high")
        output = proceed(call)
        if self._learner is not None and call.run.is_last_step and self._learner.learn(call, output):
            self._learner = None
            self._resolutions.clear()  # the next call uses what was measured
        return output

    def _low(
        self,
        call: DenoiserCall,
        proceed: Callable[[DenoiserCall], Any],
        low: tuple[int, int],
        prediction: Prediction,
    ) -> Any:
        """A forward on latents of ``low`` (height, width), as the output of a full-size forward."""
        layout, pipe, level = self._target.layout, call.run.pipe, call.step.noise
        latent = layout.decode(pipe, call.kwargs)
        # Intermediate tensors have at least single precision and are rounded once, at the end.
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


class _Learner:
    """Measures the spectrum of the final latents of a run, and stores it for later runs."""

    def __init__(self, name: str, target: Target, autoencoder: str) -> None:
        self._name, self._target, self._autoencoder = name, target, autoencoder

    @classmethod
    def of(cls, name: str, config: ContinuousConfig, target: Target) -> _Learner | None:
        """A learner if the spectrum is needed and unknown, else ``None``."""
        if config.low_until != "auto" or not config.learn_spectrum or may_differ():
            return None
        if spectrum_for(config, target.pipe)[1] is not None:
            return None
        autoencoder = autoencoder_of(target.pipe)
        return None if autoencoder is None else cls(name, target, autoencoder)

    def learn(self, call: DenoiserCall, output: Any) -> bool:
        """Measure the clean latents that the last forward estimates. Returns whether this succeeded."""
        layout, pipe = self._target.layout, call.run.pipe
        state = layout.decode(pipe, call.kwargs)
        sample = layout.decode_output(pipe, call.kwargs, call.sample(output))[:, : state.shape[1]]
        clean = clean_estimate(layout.prediction(pipe), state.float(), sample.float(), call.step.noise)
        try:
            found = measure(clean)
        except ValueError as error:
            call.run.record(self._name, not_measured=str(error))
            return False
        place = keep(self._autoencoder, found) or "this process"
        law = [found.spectrum.amplitude, found.spectrum.exponent]
        call.run.record(self._name, measured=law, kept=str(place))
        return True
