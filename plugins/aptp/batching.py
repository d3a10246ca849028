"""Splits a pipeline call into groups of its prompts and merges the results, as if it were one call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hasten.extend import RunCall, ScaleSchedule, UnsupportedError, swapped

__all__ = ["check_splittable", "drawn_once", "merge", "part_of_call"]

_STOCHASTIC = ("Ancestral", "SDE", "LCM", "DDPM", "TCD", "Stochastic")
_PICTURES = ("image", "mask_image", "control_image", "ip_adapter_image", "ip_adapter_image_embeds", "images")


def check_splittable(call: RunCall) -> None:
    """Refuse a split that would change the pictures.

    Raises:
        UnsupportedError: the scheduler draws noise in every step from one generator, or the call has input pictures.
    """
    arguments, scheduler = call.arguments, getattr(call.pipe, "scheduler", None)
    for name in _PICTURES:
        if arguments.get(name) is not None:
            raise UnsupportedError(
                f"aptp cannot split a batch with {name!r} between experts; call the pipeline with one prompt "
                f"at a time, or set aptp.policy='single'"
            )
    stochastic = any(word in type(scheduler).__name__ for word in _STOCHASTIC)
    stochastic |= str(getattr(getattr(scheduler, "config", None), "algorithm_type", "")).startswith("sde")
    stochastic |= _scale_by_scale(call)
    if (stochastic or arguments.get("eta")) and not isinstance(arguments.get("generator"), list):
        raise UnsupportedError(
            f"{type(scheduler).__name__} draws noise in every step, and a split batch cannot share one "
            f"generator; pass generator=[one for each picture], or set aptp.policy='single'"
        )


def part_of_call(call: RunCall, prompts: Sequence[int], count: int, copies: int) -> RunCall:
    """The call for some of its prompts.

    Args:
        call: the whole call.
        prompts: positions of the prompts.
        count: prompts of the whole call.
        copies: pictures of each prompt.
    """
    changes: dict[str, Any] = {}
    for name, value in call.arguments.items():
        if name == "generator" and isinstance(value, list):
            changes[name] = [value[i] for i in sample_indices(prompts, copies)]
        elif isinstance(value, (list, tuple)) and len(value) == count and "prompt" in name:
            changes[name] = [value[i] for i in prompts]
        elif isinstance(value, Tensor) and len(value) == count and "prompt" in name:
            changes[name] = value[list(prompts)]
    callback = call.arguments.get("callback_on_step_end")
    if callback is not None:
        changes["callback_on_step_end"] = _with_indices(callback, tuple(sample_indices(prompts, copies)))
    return call.replace_arguments(changes)


def sample_indices(prompts: Sequence[int], copies: int) -> list[int]:
    """Positions of the pictures of some prompts in the whole batch."""
    return [prompt * copies + copy for prompt in prompts for copy in range(copies)]


class Draws:
    """The initial latents of the whole batch, drawn once, as the pipeline draws them.

    Args:
        generator: argument ``generator`` of the whole call.
        total: number of pictures of the whole call.
    """

    def __init__(self, generator: torch.Generator | list[torch.Generator] | None, total: int) -> None:
        self._generator, self._total = generator, total
        self._whole: Any = None

    @contextmanager
    def part(self, pipe: Any, samples: Sequence[int]) -> Iterator[None]:
        """Inside the ``with`` block the pipeline uses the latents of ``samples``, positions in the whole batch."""
        original = pipe.prepare_latents
        signature = inspect.signature(original)

        def prepare(*args: Any, **kwargs: Any) -> Any:
            if self._whole is None:
                bound = signature.bind(*args, **kwargs)
                bound.arguments.update(batch_size=self._total, generator=self._generator)
                self._whole = original(*bound.args, **bound.kwargs)
            return _rows(self._whole, samples, self._total)

        with swapped(pipe, "prepare_latents", prepare):
            yield


def drawn_once(call: RunCall, total: int) -> Draws | None:
    """The latents of a call of ``total`` pictures; ``None`` if none are drawn before the first step.

    Raises:
        UnsupportedError: the pipeline has no ``prepare_latents`` with ``batch_size`` and ``generator``.
    """
    if _scale_by_scale(call):
        return None
    method = getattr(call.pipe, "prepare_latents", None)
    if method is None or not {"batch_size", "generator"} <= set(inspect.signature(method).parameters):
        raise UnsupportedError(
            f"{type(call.pipe).__name__} has no prepare_latents(batch_size, ..., generator), so a batch "
            f"cannot be split with the same noise; set aptp.policy='single'"
        )
    return Draws(call.arguments.get("generator"), total)


def merge(outputs: Sequence[Any], samples: Sequence[Sequence[int]]) -> Any:
    """The results of all groups, in the order of the whole batch.

    Args:
        outputs: results of the pipeline for each group: tuples or output objects.
        samples: positions of the pictures of each group.
    """
    first = outputs[0]
    if isinstance(first, tuple) and not isinstance(first, Mapping):
        return type(first)(_scatter(column, samples) for column in zip(*outputs))
    fields = {name: _scatter([getattr(o, name) for o in outputs], samples) for name in vars(first)}
    return type(first)(**fields)


def _scale_by_scale(call: RunCall) -> bool:
    return call.target.adapter.capability(ScaleSchedule) is not None


def _scatter(parts: Sequence[Any], samples: Sequence[Sequence[int]]) -> Any:
    if any(part is None for part in parts):
        return None
    order = [position for group in samples for position in group]
    back = sorted(range(len(order)), key=order.__getitem__)
    if isinstance(parts[0], Tensor):
        return torch.cat(list(parts))[back]
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(list(parts))[back]
    flat = [item for part in parts for item in part]
    return [flat[i] for i in back]


def _rows(value: Any, samples: Sequence[int], total: int) -> Any:
    if isinstance(value, Tensor):
        return value[list(samples)] if value.ndim > 2 and len(value) == total else value
    if isinstance(value, (tuple, list)):
        return type(value)(_rows(item, samples, total) for item in value)
    return value


def _with_indices(callback: Callable[..., Any], samples: tuple[int, ...]) -> Callable[..., Any]:
    """A callback that also receives the positions of its pictures in the whole batch, as ``sample_indices``."""
    if not callable(callback) or hasattr(callback, "tensor_inputs"):
        return callback  # diffusers' own callback objects take exactly what they ask for

    def called(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> Any:
        return callback(pipe, step, timestep, {**kwargs, "sample_indices": samples})

    return called
