"""``mode="restart"``: the stages of the paper, each of which starts from re-introduced noise.

The pipeline's loop runs once, over a scheduler that contains one scheduler for each stage
(:mod:`hasten.plugins.bottleneck.staged`). The pipeline's latents change their shape between stages. Arguments that the
pipeline computed for the full size are rewritten before each forward.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from hasten.extend import (
    DenoiserCall,
    Finding,
    HastenError,
    LatentSize,
    UnsupportedError,
    nothing_to_run,
    unwrapped,
)
from hasten.plugins.bottleneck.config import RestartConfig
from hasten.plugins.bottleneck.staged import StageRun, staged_scheduler
from hasten.plugins.bottleneck.stages import is_flow, plan_stages, preset_for
from hasten.schedules.dct import dct_truncate
from hasten.schedules.lanczos import lanczos_resize

if TYPE_CHECKING:
    from hasten.extend import RunCall, Target

__all__ = ["Restart", "Transition", "call_refusal", "findings", "planned_run", "resize_clean"]

_PICTURES = ("image", "images", "mask_image", "control_image", "video")


def findings(config: RestartConfig, target: Target) -> Iterable[Finding]:
    """Errors, warnings and notes about restart mode on a pipeline."""
    yield from _loop_findings(target)
    yield from _stage_findings(config, target)
    yield Finding("note", "mode='restart' has its own step counts: num_inference_steps has no effect")


def _loop_findings(target: Target) -> Iterator[Finding]:
    """Reasons why the pipeline's loop cannot be divided into stages."""
    accepted = inspect.signature(type(target.pipe).__call__).parameters
    given = [
        name for name in _PICTURES if name in accepted and accepted[name].default is inspect.Parameter.empty
    ]
    if "strength" in accepted or given:
        yield Finding("error", _builds_on_a_picture(target, given or ["strength"]))
    conditions = _condition_channels(target)
    if conditions and not given:
        yield Finding(
            "error",
            f"mode='restart' cannot resize the {conditions} condition channels that {target.name} appends to the "
            f"latents in its loop; use mode='continuous'",
        )
    if reason := target.layout.resizing_refusal(target.pipe):
        yield Finding(
            "error", f"mode='restart' does not work on {target.name}: {reason}; use mode='continuous'"
        )


def _stage_findings(config: RestartConfig, target: Target) -> Iterator[Finding]:
    """Errors and warnings about the stages, on this pipeline's scheduler."""
    if config.stages is None and config.preset is None and preset_for(target) is None:
        yield Finding(
            "error",
            "mode='restart' has published stages for FLUX.1-dev and HunyuanVideo only; give stages, or a preset to "
            "start from",
        )
    for number, stage in enumerate(config.stages or ()):
        if number > 0 and stage.first == 0:
            yield Finding(
                "warning",
                f"stages.{number} starts from pure noise, so the stages before it have no effect: strength "
                f"{stage.strength} removes none of its {stage.steps} steps; lower it or give the "
                f"stage more steps",
            )
    flow = is_flow(target.pipe.scheduler)
    for option, value in (("switch", "x0"), ("mix", "strength")):
        if getattr(config, option) == value and not flow:
            yield Finding("error", f"{option}={value!r} is defined for flow-matching schedulers only")


def call_refusal(target: Target, arguments: Mapping[str, Any]) -> str | None:
    """Reason why a call with these arguments cannot be divided into stages; ``None`` if it can."""
    given = [name for name in _PICTURES if arguments.get(name) is not None]
    if given:
        return _builds_on_a_picture(target, given)
    if arguments.get("denoising_end") is not None:
        return "denoising_end would end the run between stages, at a low resolution; use mode='continuous'"
    return None


def _builds_on_a_picture(target: Target, arguments: list[str]) -> str:
    return (
        f"mode='restart' replaces the latents between stages, and {target.name} builds on a given picture "
        f"({', '.join(arguments)}); use mode='continuous'"
    )


def _condition_channels(target: Target) -> int:
    """Number of input channels of the denoiser besides the noisy latents."""
    config = getattr(next(iter(target.denoisers.values()), None), "config", {})
    inner, outer = config.get("in_channels"), config.get("out_channels")
    if (
        not isinstance(inner, int) or not isinstance(outer, int) or inner == 4 * outer
    ):  # tokens of 2 x 2 patches
        return 0
    return max(inner - outer, 0)


def planned_run(config: RestartConfig, target: Target, scheduler: Any, size: LatentSize) -> StageRun:
    """The stages of a run with latents of ``size``, each with a copy of ``scheduler``.

    Raises:
        ConfigError: a stage is not possible.
    """
    return StageRun(scheduler, plan_stages(config, target, size), hand_over_estimate=config.switch == "x0")


class Restart:
    """Handlers of restart mode: one makes the scheduler of a run, one rewrites positions before each forward.

    Args:
        name: name of the technique, for reports.
        config: its options.
        target: the pipeline.
    """

    def __init__(self, name: str, config: RestartConfig, target: Target) -> None:
        self._name = name
        self._config = config
        self._target = target

    def stage_scheduler(self, scheduler: Any, call: RunCall) -> Any:
        """The scheduler of one run; the pipeline's scheduler for a call without steps.

        Raises:
            UnsupportedError: the call cannot be divided into stages.
        """
        if nothing_to_run(self._target, call.arguments):
            return scheduler
        if reason := call_refusal(self._target, call.arguments):
            raise UnsupportedError(reason)
        size = self._target.layout.call_size(call.pipe, call.arguments)
        run = planned_run(self._config, self._target, scheduler, size)
        run.switch = Transition(self._config, self._target, call.arguments.get("generator"))
        return staged_scheduler(scheduler, run)

    def rewrite_positions(self, call: DenoiserCall, proceed: Callable[[DenoiserCall], Any]) -> Any:
        """Run one forward with position arguments for the size of the current stage."""
        run: StageRun = call.run.pipe.scheduler.stage_run
        transition = run.switch
        if not isinstance(transition, Transition):
            raise HastenError("restart mode does not run on its own scheduler")
        transition.remember(call)
        call.run.record(self._name, stage=run.stage + 1)
        if run.size == transition.full:
            return proceed(call)
        return proceed(call.replace_kwargs(transition.arguments_at(run.size, call.kwargs)))


class Transition:
    """Takes the latents from one stage to the next: resizes them, and adds noise up to the next stage's level.

    Args:
        config: the technique's options.
        target: the pipeline.
        generator: the pipeline call's generator, or list of generators.
    """

    def __init__(
        self,
        config: RestartConfig,
        target: Target,
        generator: torch.Generator | list[torch.Generator] | None,
    ) -> None:
        self._config = config
        self._target = target
        self._generator = generator
        if config.seed is not None:
            self._generator = torch.Generator().manual_seed(config.seed)
        self._argument = ""
        self._template: Mapping[str, Any] = {}
        self._field: Tensor | None = None
        self.full = (0, 0)

    def remember(self, call: DenoiserCall) -> None:
        """Store the arguments of the first forward, which has full size: latents are packed and unpacked with them."""
        if self._template:
            return
        self._template = call.kwargs
        self._argument = tuple(inspect.signature(type(unwrapped(call.module)).forward).parameters)[1]
        size = call.step.size
        self.full = (size.height, size.width)

    def arguments_at(self, size: tuple[int, int], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """``kwargs``, which have small latents and full-size positions, with all arguments for ``size``."""
        latents = kwargs[self._argument]
        return {**self._encoded(size, kwargs), self._argument: latents}

    def _encoded(self, size: tuple[int, int], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """``kwargs`` for latents of ``size``, with zeros as latents."""
        layout, pipe = self._target.layout, self._target.pipe
        # Packed latents can be unpacked only with matching positions, so full-size ones replace the small ones.
        example = self._template[self._argument]
        batch = len(kwargs[self._argument])
        whole = {**kwargs, self._argument: example[:1].expand(batch, *example.shape[1:])}
        blank = layout.decode(pipe, whole)
        return layout.encode(
            pipe, whole, blank.new_zeros(*blank.shape[:-2], *size), layout.level(pipe, whole)
        )

    def _frame(self, size: tuple[int, int]) -> Mapping[str, Any]:
        """Arguments of a forward at ``size``, for packing and unpacking samples."""
        return self._template if size == self.full else self._encoded(size, self._template)

    def __call__(
        self, sample: Tensor, size: tuple[int, int], following: tuple[int, int], run: StageRun
    ) -> Tensor:
        """The first sample of the stage that ``run`` has just entered, packed, with the dtype of ``sample``."""
        layout, pipe = self._target.layout, self._target.pipe
        if not self._template:
            raise HastenError("restart mode saw a scheduler step before any denoiser forward")
        clean = resize_clean(
            layout.decode_output(pipe, self._frame(size), sample).float(), following, self._config.resize
        )
        noise = self._noise(clean)
        if self._config.mix == "strength":
            strength = run.planned[run.stage].stage.strength
            mixed = (1.0 - strength) * clean + strength * noise
        else:
            mixed = _add_noise(run.scheduler, clean, noise, run.times[run.stage][:1])
        packed: Tensor = layout.encode_output(pipe, self._frame(following), mixed)
        return packed.to(sample.dtype)

    def _noise(self, like: Tensor) -> Tensor:
        """White noise like ``like``: drawn for it, or one full-size field truncated to its size."""
        if self._config.noise == "fresh":
            return self._draw(like, tuple(like.shape[-2:]))
        if self._field is None:
            self._field = self._draw(like, self.full)
        return dct_truncate(self._field, like.shape[-2], like.shape[-1])

    def _draw(self, like: Tensor, size: tuple[int, ...]) -> Tensor:
        from diffusers.utils.torch_utils import randn_tensor

        shape = (*like.shape[:-2], *size)
        drawn: Tensor = randn_tensor(shape, generator=self._generator, device=like.device, dtype=like.dtype)
        return drawn


def _add_noise(scheduler: Any, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
    """``clean`` with noise up to the level of ``timestep``, in the convention of the scheduler."""
    timesteps = timestep.expand(len(clean))
    mixed: Tensor
    if hasattr(scheduler, "scale_noise"):
        mixed = scheduler.scale_noise(clean, timesteps, noise)
    else:
        mixed = scheduler.add_noise(clean, noise, timesteps)
    return mixed


def resize_clean(x: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resize latents without noise.

    Args:
        x: (B, C, [F,] H, W), single precision or better.
        size: new height and width; frames are kept.
        mode: ``"lanczos"``, ``"bicubic"``, ``"bilinear"`` (all anti-aliased when shrinking) or ``"nearest"``.
    """
    if mode == "lanczos":
        return lanczos_resize(x, *size)
    flat = functional.interpolate(x.flatten(0, -3)[:, None], size, mode=mode, antialias=mode != "nearest")
    return flat.view(*x.shape[:-2], *size)
