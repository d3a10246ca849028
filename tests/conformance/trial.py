"""What each technique does on one stock pipeline, tried: exact setting, low setting, restored."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image
import torch
from stock import Stock
from torch import Tensor

import hasten
from hasten.extend import LatentLayout, Prediction, Target

__all__ = ["TECHNIQUES", "Settings", "Trial", "run"]

Evidence = Callable[[Any], bool]


@dataclass(frozen=True)
class Settings:
    """A technique's exact and active options, and what a report of the active ones has to show."""

    exact: Mapping[str, Any]
    active: Mapping[str, Any]
    evidence: Evidence
    tolerance: float = 0.0


def _small(report: Any) -> bool:
    return any(step.resolution != step.size for step in report.steps)


def _sparse(report: Any) -> bool:
    return any("sparse" in step.facts.get("rettention", {}).get("layers", {}) for step in report.steps)


TECHNIQUES = {
    "bottleneck": Settings(
        {"low_until": 1.0, "high_first": 0.5, "min_pixels": 1},
        {"low_until": 0.05, "high_first": 1.0, "min_pixels": 1},
        _small,
    ),
    "rettention": Settings(
        {"keep_ratio": 1.0, "warmup": 0, "min_tokens": 4},
        {"keep_ratio": 0.5, "warmup": 0, "min_tokens": 1},
        _sparse,
    ),
    "video_infinity": Settings(
        {"mode": "full", "clips": 1},
        {"mode": "dual", "clips": 2, "halo": 1, "global_frames": 1},
        lambda _: True,
        tolerance=1e-4,
    ),
}


@dataclass
class Trial:
    """Results of one pipeline class: for each technique ``"runs"``, or why not."""

    pipeline: str
    oracle: str = ""
    """``"right"`` if a denoiser that knows the picture keeps the noise the same from step to step."""
    techniques: dict[str, str] = field(default_factory=dict)


def run(stock: Stock, names: tuple[str, ...] = tuple(TECHNIQUES)) -> Trial:
    """Try every technique of ``names``."""
    trial = Trial(stock.name)
    pipe, baseline = _settled(stock)
    try:
        adapter = Target.of(pipe).adapter
    except hasten.UnsupportedError as error:
        reason = str(error).partition(": ")[2] or str(error)
        trial.techniques = dict.fromkeys(names, f"refused: {reason}")
        return trial
    if adapter.capability(LatentLayout) is not None:
        trial.oracle = oracle(stock)
    for name in names:
        trial.techniques[name] = _attempt(stock, name, TECHNIQUES[name], baseline)
    return trial


def _settled(stock: Stock) -> tuple[Any, list[Tensor]]:
    """A pipeline and what it makes, under the largest call that its test allows."""
    last: Exception | None = None
    for stock.enlarge, stock.latent in ((True, True), (True, False), (False, True), (False, False)):
        pipe = stock.pipeline()
        try:
            made = _call(stock, pipe)
            if not all(bool(output.isfinite().all()) for output in made):
                raise ValueError("its output is not finite")
            return pipe, made
        except Exception as error:  # whatever a pipeline says to a call it does not know
            last = error
    raise RuntimeError(f"{stock.name} does not run stock: {last}") from last


def _call(stock: Stock, pipe: Any, whole: bool = False) -> list[Tensor]:
    """What ``pipe`` makes; some pipelines draw from the global generator beside the one they are given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _outputs(pipe(**stock.arguments(whole)))


def _outputs(result: Any) -> list[Tensor]:
    """Every tensor of a pipeline's output."""
    if isinstance(result, Tensor):
        return [result.float()]
    if isinstance(result, np.ndarray):
        return [torch.as_tensor(result).float()]
    if isinstance(result, PIL.Image.Image):
        return [torch.as_tensor(np.array(result)).float()]
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, (list, tuple)):
        return [tensor for item in result for tensor in _outputs(item)]
    return []


def _same(ours: list[Tensor], theirs: list[Tensor], tolerance: float = 0.0) -> bool:
    close = all(
        (a - b).abs().max() <= tolerance * b.abs().max() + 0.0 for a, b in zip(ours, theirs, strict=True)
    )
    return bool(ours) and close


def _attempt(stock: Stock, name: str, settings: Settings, baseline: list[Tensor]) -> str:
    pipe = stock.pipeline()
    try:
        acceleration = hasten.accelerate(pipe, {name: dict(settings.exact)})
    except hasten.HastenError as error:
        return f"refused: {_reason(error)}"
    try:
        with acceleration:
            if not _same(_call(stock, pipe), baseline, settings.tolerance):
                return "WRONG: the exact setting differs"
        with hasten.accelerate(pipe, {name: dict(settings.active)}) as acceleration:
            outputs = _call(stock, pipe)
            report = acceleration.report()
    except hasten.ConfigError as error:
        return f"too small to try: {_reason(error)}"
    except hasten.HastenError as error:
        return f"FAILED in the call: {_reason(error)}"
    if not all(bool(output.isfinite().all()) for output in outputs):
        return "WRONG: not finite"
    if _same(outputs, baseline) or not settings.evidence(report):
        return "IDLE"
    if not _same(_call(stock, pipe), baseline):
        return "WRONG: not restored"
    return "runs"


def _reason(error: Exception) -> str:
    text = str(error)
    return text.partition(": ")[2] if " refuses this " in text else text


def oracle(stock: Stock) -> str:
    """Let a denoiser that knows a picture answer, and see whether the noise stays what it was.

    A solver of a differential equation keeps it exactly, one that draws noise keeps its size. With a sign, a time or an
    arrangement misread, it grows or turns around.
    """
    pipe = stock.pipeline()
    target = Target.of(pipe)
    layout = target.layout
    path = getattr(layout, "path", None)
    reason = None if path is None else path(pipe).refusal(pipe)
    if reason is not None:
        return f"not asked: {reason}"
    noises: list[Tensor] = []
    known: dict[str, Tensor] = {}
    undo = []
    for module in target.denoisers.values():
        names = tuple(inspect.signature(type(module).forward).parameters)[1:]
        inner = module.forward

        def answer(*args: Any, _names: tuple[str, ...] = names, _inner: Any = inner, **kwargs: Any) -> Any:
            bound = dict(zip(_names, args)) | kwargs
            output = _inner(*args, **kwargs)
            state, level = layout.decode(pipe, bound).float(), layout.level(pipe, bound)
            picture = known.setdefault("x0", _smooth(state[:1]))
            noise = (state - level.alpha * picture) / max(level.sigma, 1e-6)
            noises.append(noise[:1])
            prediction = {
                Prediction.VELOCITY: noise - picture,
                Prediction.NEGATIVE_VELOCITY: picture - noise,
                Prediction.EPSILON: noise,
                Prediction.VP_VELOCITY: level.alpha * noise - level.sigma * picture,
            }[layout.prediction(pipe)]
            sample = output if isinstance(output, Tensor) else output[0]
            decoded = layout.decode_output(pipe, bound, sample)
            if decoded.shape[1] > prediction.shape[1]:
                # The variance too: -1 stands for the posterior's, which an untrained network does not answer.
                variance = torch.full_like(decoded[:, prediction.shape[1] :].float(), -1.0)
                prediction = torch.cat([prediction, variance], dim=1)
            encoded = layout.encode_output(pipe, bound, prediction)
            if isinstance(output, Tensor):
                return encoded
            if isinstance(output, tuple):
                return (encoded, *output[1:])
            output.sample = encoded
            return output

        module.forward = answer  # type: ignore[method-assign]
        undo.append(module)
    try:
        _call(stock, pipe, whole=True)
    except hasten.HastenError as error:
        return f"refused: {error}"
    finally:
        for module in undo:
            del module.forward
    return _verdict(noises)


def _smooth(like: Tensor) -> Tensor:
    picture = torch.rand(like.shape, generator=torch.Generator().manual_seed(5)) - 0.5
    return picture.to(like)


def _verdict(noises: list[Tensor]) -> str:
    first = noises[0]
    kept = [bool(((noise - first).abs() < 0.02 * first.abs().max()).float().mean() > 0.5) for noise in noises]
    if all(kept):
        return "right"
    sizes = [float(noise.std() / first.std()) for noise in noises]
    if all(0.6 < size < 1.6 for size in sizes):
        return "right (noise drawn anew)"
    return f"WRONG: the noise changes by {', '.join(f'{size:.2f}' for size in sizes)}"
