"""``mode="continuous"``: forwards at some noise levels run on smaller latents; the pipeline does not notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch

from hasten.extend import ImageLayout, LatentSize
from hasten.plugins.bottleneck.config import ContinuousConfig
from hasten.plugins.bottleneck.learned import autoencoder_of, keep, may_differ, measure
from hasten.plugins.bottleneck.levels import Resolutions, resolve, spectrum_for
from hasten.plugins.bottleneck.math import clean_estimate, expand_prediction, low_state, path_of

if TYPE_CHECKING:
    from hasten.extend import ControlCall, DenoiserCall, Run, Target
    from hasten.schedules.noise import NoiseLevel

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
        low = self._low_at(call.run, call.step.noise, call.step.size)
        if low is not None:
            call.run.record(self._name, phase="low")
            return self._low(call, proceed, low)
        call.run.record(self._name, phase="high")
        output = proceed(call)
        if self._learner is not None and call.run.is_last_step and self._learner.learn(call, output):
            self._learner = None
            self._resolutions.clear()  # the next call uses what was measured
        return output

    def control(self, call: ControlCall, proceed: Callable[[ControlCall], Any]) -> Any:
        """One forward of the control network, at the resolution of the denoiser's that follows."""
        low = self._low_at(call.run, call.noise, call.size)
        if low is None:
            return proceed(call)
        layout, network, pipe = cast(ImageLayout, self._target.layout), call.network, call.run.pipe
        x = _precise(network.decode(layout, pipe, call.kwargs))
        y, low_level = low_state(x, call.noise, low, path_of(layout.prediction(pipe)))
        encoded = network.encode(layout, pipe, call.kwargs, y, low_level)
        return proceed(call.replace_kwargs({**encoded, **self._conditions(call, low)}))

    def _conditions(self, call: ControlCall, low: tuple[int, int]) -> dict[str, Any]:
        """The condition pictures at size ``low``, resized once in a run."""
        given = [call.kwargs.get(name) for name in (*call.network.conditions, *call.network.masks)]
        kept = call.run.state(self._name).setdefault("conditions", {})
        if low not in kept or any(new is not old for new, old in zip(given, kept[low][0])):
            layout, pipe = cast(ImageLayout, self._target.layout), call.run.pipe
            kept[low] = given, call.network.resized_conditions(layout, pipe, call.kwargs, LatentSize(*low))
        resized: dict[str, Any] = kept[low][1]
        return resized

    def _low_at(self, run: Run, noise: NoiseLevel, size: LatentSize) -> tuple[int, int] | None:
        """The low size of a forward, ``None`` for full resolution."""
        prediction = self._target.layout.prediction(run.pipe)
        low = self._resolutions_of(size).low_at(noise, prediction)
        return None if low is None or run.is_last_level(noise) else low

    def _low(self, call: DenoiserCall, proceed: Callable[[DenoiserCall], Any], low: tuple[int, int]) -> Any:
        """A forward on latents of ``low`` (height, width), as the output of a full-size forward."""
        layout, pipe, level = self._target.layout, call.run.pipe, call.step.noise
        prediction = layout.prediction(pipe)
        x = _precise(layout.decode(pipe, call.kwargs))
        y, low_level = low_state(x, level, low, path_of(prediction))
        low_call = call.replace_kwargs(self._encoded(call, y, low_level))
        output = proceed(low_call)
        sample = layout.decode_output(pipe, low_call.kwargs, call.sample(output)).to(x.dtype)
        result = expand_prediction(prediction, x, level, y, low_level, sample, self._config.taper)
        return call.with_sample(output, layout.encode_output(pipe, call.kwargs, result))

    def _encoded(self, call: DenoiserCall, y: torch.Tensor, level: NoiseLevel) -> dict[str, Any]:
        """Arguments of a forward on ``y``; features of a control network that ran at this size stay."""
        layout, pipe, fed = self._target.layout, call.run.pipe, call.run.control_size
        if fed is None or (fed.height, fed.width) != tuple(y.shape[-2:]):
            return layout.encode(pipe, call.kwargs, y, level)
        kept = {name: call.kwargs[name] for name in layout.controls if name in call.kwargs}
        call.run.record(self._name, control="low")
        return {**layout.encode(pipe, {**call.kwargs, **dict.fromkeys(kept)}, y, level), **kept}

    def _resolutions_of(self, size: LatentSize) -> Resolutions:
        if size not in self._resolutions:
            self._resolutions[size] = resolve(self._config, self._target, size)
        return self._resolutions[size]


def _precise(latent: torch.Tensor) -> torch.Tensor:
    """``latent`` in at least single precision: intermediate tensors are rounded once, at the end."""
    return latent.to(torch.promote_types(latent.dtype, torch.float32))


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
