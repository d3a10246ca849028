"""Noise paths: the noise level of a timestep argument, and the prediction type.

A path converts between the timestep argument of a denoiser and :class:`~hasten.schedules.noise.NoiseLevel`. Errors
here raise no exception, but ruin the pictures.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import override

from hasten._adapters.base import Prediction
from hasten._errors import UnsupportedError
from hasten._pipeline import Pipeline, Scheduler
from hasten.schedules.noise import NoiseLevel

if TYPE_CHECKING:
    from torch import Tensor


class Path(ABC):
    """The noise path of a family."""

    @abstractmethod
    def level(self, pipe: Pipeline, timestep: Tensor) -> NoiseLevel:
        """Level of a timestep argument; the noisiest entry counts, because cleaner ones are conditions."""

    @abstractmethod
    def timestep(self, pipe: Pipeline, level: NoiseLevel) -> float:
        """Timestep argument for ``level``."""

    @abstractmethod
    def prediction(self, pipe: Pipeline) -> Prediction:
        """What the denoiser predicts."""

    @abstractmethod
    def refusal(self, pipe: Pipeline) -> str | None:
        """Why the pipeline's scheduler does not follow this path, or ``None`` if it does."""

    @abstractmethod
    def untold(self, scheduler: Scheduler) -> str | None:
        """Why :meth:`level` finds no level for a timestep of this scheduler, or ``None`` if it does."""

    def planned(self, pipe: Pipeline, scheduler: Scheduler) -> list[NoiseLevel] | None:  # noqa: ARG002
        """Levels of the timesteps ``scheduler`` is set to; ``None`` where its own tables tell them."""
        return None

    def clock_refusal(self, pipe: Pipeline) -> str | None:
        """Why the steps of the pipeline's scheduler are not told by levels that fall, or ``None`` if they are."""
        scheduler = getattr(pipe, "scheduler", None)
        if scheduler is None:
            return "it has no scheduler, so it makes no denoising steps"
        if reason := self.untold(scheduler):
            return reason
        times: Any = getattr(_probed(scheduler), "timesteps", ())
        if len(times) > 1 and float(times[-1]) > float(times[0]):
            return (
                f"its scheduler {type(scheduler).__name__} goes from clean to noisy (inversion), so every "
                f"step looks like the start of a new run; use the scheduler it inverts"
            )
        return None


@dataclass(frozen=True)
class FlowPath(Path):
    """Rectified flow, ``x = (1 - t) x0 + t noise``, with timestep ``scale * t``.

    With ``data_fraction`` the model is told ``scale * (1 - t)`` and predicts the derivative along that, ``x0
    - noise``: reversed time and a negated output are one convention, and the pipeline undoes both in its
    loop.
    """

    scale: float = 1000.0
    data_fraction: bool = False
    negated: bool = False
    """Whether the model returns ``x0 - noise`` although it is told the time."""

    @override
    def level(self, pipe: Pipeline, timestep: Tensor) -> NoiseLevel:
        """Level of the solver's state; see :func:`_solver_time` for why it is not just the timestep."""
        told = torch.as_tensor(timestep).float() / self.scale
        time = 1.0 - told.min() if self.data_fraction else told.max()
        return NoiseLevel.flow(_solver_time(pipe.scheduler, time, torch.as_tensor(timestep).dtype))

    @override
    def timestep(self, pipe: Pipeline, level: NoiseLevel) -> float:
        """``scale * t``, or ``scale * (1 - t)``. Flow models take fractional timesteps."""
        time = level.time
        return self.scale * (1.0 - time if self.data_fraction else time)

    @override
    def prediction(self, pipe: Pipeline) -> Prediction:
        """Velocity, negated for models that are told the data fraction."""
        negative = self.data_fraction or self.negated
        return Prediction.NEGATIVE_VELOCITY if negative else Prediction.VELOCITY

    @override
    def refusal(self, pipe: Pipeline) -> str | None:
        """Refuse diffusion schedulers that were not switched to flow (``use_flow_sigmas``)."""
        scheduler = pipe.scheduler
        if hasattr(scheduler, "alphas_cumprod") and not scheduler.config.get("use_flow_sigmas", False):
            return (
                f"its scheduler {type(scheduler).__name__} is not a flow-matching scheduler; "
                "use FlowMatchEulerDiscreteScheduler, or set use_flow_sigmas=True"
            )
        sigmas = getattr(_probed(scheduler), "sigmas", None)
        if sigmas is None or float(torch.as_tensor(sigmas).max()) > 1.0 + _BEYOND:
            return (
                f"its scheduler {type(scheduler).__name__} has no flow times between 0 and 1 as noise levels; "
                "use FlowMatchEulerDiscreteScheduler"
            )
        return None

    @override
    def untold(self, scheduler: Scheduler) -> str | None:
        """Timesteps have to lie between 0 and the number of training timesteps."""
        trained: Any = scheduler.config.get("num_train_timesteps")
        times: Any = getattr(_probed(scheduler), "timesteps", ())
        if trained is None or (len(times) and float(times[0]) > (1.0 + _BEYOND) * trained):
            return f"the timesteps of its scheduler {type(scheduler).__name__} have no known scale"
        return None


class RatioFlowPath(FlowPath):
    """Rectified flow told ``t``, from a solver that keeps ``x0 + s * noise`` with ``s = t / (1 - t)``."""

    @override
    def level(self, pipe: Pipeline, timestep: Tensor) -> NoiseLevel:
        """What is told; the solver's sigmas are on another axis."""
        return NoiseLevel.flow(float(torch.as_tensor(timestep).float().max()) / self.scale)

    @override
    def refusal(self, pipe: Pipeline) -> str | None:
        """The pipeline sets the sigmas itself."""
        return None

    @override
    def untold(self, scheduler: Scheduler) -> str | None:
        """The pipeline tells the time, whatever the scheduler's timesteps are."""
        return None

    @override
    def planned(self, pipe: Pipeline, scheduler: Scheduler) -> list[NoiseLevel] | None:
        """From the sigmas."""
        sigmas = scheduler.sigmas[: len(scheduler.timesteps)]
        return [NoiseLevel.flow(float(sigma) / (1.0 + float(sigma))) for sigma in sigmas]


class InvertedFlowPath(FlowPath):
    """Rectified flow whose scheduler counts upwards, from pure noise at 0 to data at 1."""

    @override
    def level(self, pipe: Pipeline, timestep: Tensor) -> NoiseLevel:
        """One minus what is told."""
        return NoiseLevel.flow(1.0 - float(torch.as_tensor(timestep).float().min()) / self.scale)

    @override
    def clock_refusal(self, pipe: Pipeline) -> str | None:
        """Its times rise while the noise falls."""
        return self.untold(pipe.scheduler)

    @override
    def planned(self, pipe: Pipeline, scheduler: Scheduler) -> list[NoiseLevel] | None:
        """One minus the sigmas."""
        return [NoiseLevel.flow(1.0 - float(sigma)) for sigma in scheduler.sigmas[: len(scheduler.timesteps)]]


_BEYOND = 1e-3
"""Rounding above flow time 1."""
_PROBE_STEPS = 4


def _probed(scheduler: Scheduler) -> Any:
    """A copy set to a few steps; one that refuses these is left as it was made."""
    probe = copy.deepcopy(scheduler)
    shift = {"mu": 1.0} if scheduler.config.get("use_dynamic_shifting", False) else {}
    try:
        probe.set_timesteps(num_inference_steps=_PROBE_STEPS, **shift)
    except Exception:  # whatever a scheduler raises that wants other numbers of steps, or other arguments
        return scheduler
    return probe


def _solver_time(scheduler: Scheduler, told: Tensor, dtype: torch.dtype) -> float:
    """Flow time of the solver's state, for the time a model is ``told`` in precision ``dtype``.

    The model often gets a rounded number (UniPC and DPM-Solver++ cast timesteps to integers, FLUX casts them
    to half precision), while the state was made with the scheduler's own sigma. Times that are not in the
    scheduler's table within that rounding are taken as they are.
    """
    timesteps, sigmas = getattr(scheduler, "timesteps", None), getattr(scheduler, "sigmas", None)
    if timesteps is None or sigmas is None or len(timesteps) == 0 or len(sigmas) < len(timesteps):
        return float(told)
    table = timesteps.to(told.device).float() / scheduler.config.num_train_timesteps
    # One transfer from the device for the three numbers.
    distance, index = (table - told).abs().min(dim=0)
    value, gap, position = torch.stack([told, distance, index.float()]).tolist()
    rounding = torch.finfo(dtype).eps if dtype in (torch.float16, torch.bfloat16) else 1e-5
    return float(sigmas[int(position)]) if gap <= rounding else value


class VariancePreservingPath(Path):
    """Diffusion, ``alpha**2 + sigma**2 = 1``, on the scheduler's table ``alphas_cumprod``.

    Between two entries the angle ``atan2(sigma, alpha)`` is interpolated: it stays finite where a schedule of
    zero terminal SNR has ``alpha = 0``. The models embed timesteps by sines, so they take fractional ones.
    """

    @override
    def level(self, pipe: Pipeline, timestep: Tensor) -> NoiseLevel:
        """Level of table entry ``timestep``."""
        angles = self._angles(pipe)
        angle = float(np.interp(float(torch.as_tensor(timestep).max()), np.arange(len(angles)), angles))
        return NoiseLevel(math.cos(angle), math.sin(angle))

    @override
    def timestep(self, pipe: Pipeline, level: NoiseLevel) -> float:
        """Fractional table index, clamped to the table's ends."""
        angles = self._angles(pipe)
        return float(np.interp(math.atan2(level.sigma, level.alpha), angles, np.arange(len(angles))))

    @override
    def prediction(self, pipe: Pipeline) -> Prediction:
        """From the scheduler's ``prediction_type``.

        Raises:
            UnsupportedError: the type is neither ``epsilon`` nor ``v_prediction``.
        """
        if reason := self.refusal(pipe):
            raise UnsupportedError(f"{type(pipe).__name__}: {reason}")
        return _PREDICTIONS[pipe.scheduler.config.prediction_type]

    @override
    def refusal(self, pipe: Pipeline) -> str | None:
        """Refuse schedulers of another path and other predictions."""
        scheduler = pipe.scheduler
        name = type(scheduler).__name__
        if self.untold(scheduler) or scheduler.config.get("use_flow_sigmas", False):
            return f"its scheduler {name} is not variance preserving; use DDIMScheduler or one like it"
        kind = scheduler.config.get("prediction_type")
        if kind not in _PREDICTIONS:
            return f"its scheduler {name} has prediction_type={kind!r}; supported: {', '.join(_PREDICTIONS)}"
        return None

    @override
    def untold(self, scheduler: Scheduler) -> str | None:
        """Levels are looked up in ``alphas_cumprod``."""
        if hasattr(scheduler, "alphas_cumprod"):
            return None
        return (
            f"its scheduler {type(scheduler).__name__} has no table of noise levels (alphas_cumprod); "
            "use DDIMScheduler or one like it"
        )

    @staticmethod
    def _angles(pipe: Pipeline) -> npt.NDArray[np.float64]:
        kept = pipe.scheduler.alphas_cumprod.detach().cpu().double().numpy()
        angles: npt.NDArray[np.float64] = np.arctan2(np.sqrt(1.0 - kept), np.sqrt(kept))
        return angles


@dataclass(frozen=True)
class LogSigmaPath(Path):
    """Variance-preserving input of a solver that keeps ``x0 + s * noise``, told ``log(s) / 4`` (EDM).

    Args:
        data: standard deviation of clean latents in the solver's units.
        kind: what the denoiser predicts.
    """

    data: float = 1.0
    kind: Prediction = Prediction.VP_VELOCITY

    @override
    def level(self, pipe: Pipeline, timestep: Tensor) -> NoiseLevel:
        """``s / data`` is the ratio of noise to signal."""
        return self._of(float(torch.as_tensor(timestep).float().max()))

    @override
    def timestep(self, pipe: Pipeline, level: NoiseLevel) -> float:
        """A quarter of the logarithm."""
        return 0.25 * math.log(self.data * level.sigma / max(level.alpha, _SMALLEST))

    @override
    def prediction(self, pipe: Pipeline) -> Prediction:
        """As given."""
        return self.kind

    @override
    def refusal(self, pipe: Pipeline) -> str | None:
        """What it is told decides, and that is looked at by :meth:`untold`."""
        return None

    @override
    def untold(self, scheduler: Scheduler) -> str | None:
        """Timesteps have to be a quarter of the logarithm of the sigmas."""
        probe = _probed(scheduler)
        times, sigmas = getattr(probe, "timesteps", None), getattr(probe, "sigmas", None)
        if times is not None and sigmas is not None and len(sigmas) >= len(times) > 0:
            expected = 0.25 * torch.as_tensor(sigmas[: len(times)]).double().clamp_min(_SMALLEST).log()
            if torch.allclose(torch.as_tensor(times).double().cpu(), expected.cpu(), atol=1e-3):
                return None
        return (
            f"its scheduler {type(scheduler).__name__} does not tell the denoiser the logarithm of sigma; use "
            f"EulerDiscreteScheduler with timestep_type='continuous', or EDMEulerScheduler"
        )

    @override
    def planned(self, pipe: Pipeline, scheduler: Scheduler) -> list[NoiseLevel] | None:
        """From the timesteps themselves."""
        return [self._of(float(time)) for time in scheduler.timesteps]

    def _of(self, told: float) -> NoiseLevel:
        angle = math.atan2(math.exp(4.0 * told), self.data)
        return NoiseLevel(math.cos(angle), math.sin(angle))


_SMALLEST = 1e-12

_PREDICTIONS = {"epsilon": Prediction.EPSILON, "v_prediction": Prediction.VP_VELOCITY}
