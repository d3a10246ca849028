"""What is wrong with a pipeline call, found before any weight is loaded.

A saved pipeline is built without its weights, in a moment, and called: its own code then checks the arguments as it
will later, and is stopped behind that.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from hasten._cli._mistakes import explain
from hasten._errors import ConfigError, HastenError
from hasten._load import pipeline_class
from hasten._pipeline import Pipeline
from hasten._plugins import host
from hasten._target import Target

__all__ = ["check_arguments", "check_before_loading"]

_OPTIONS = {"num_inference_steps": "steps", "num_frames": "frames"}
"""Arguments of a pipeline call whose option has another name."""


class _Passed(Exception):
    """The pipeline has checked its arguments and would begin to compute."""


def check_arguments(cls: type, call: Mapping[str, Any]) -> None:
    """Refuse arguments that the pipeline class does not have.

    Raises:
        ConfigError: names the option.
    """
    parameters = inspect.signature(cls.__call__).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in call:
        if name not in parameters:
            option = _OPTIONS.get(name, name)
            raise ConfigError(f"{cls.__name__} has no argument {name!r}: remove `{option}`")


def check_before_loading(model: str, call: Mapping[str, Any]) -> None:
    """Refuse what ``model`` will not take, where its configuration lies on this machine.

    Raises:
        ConfigError: an argument that the pipeline does not have, or a value that it refuses.
    """
    pipe = _without_weights(model)
    if pipe is None:
        return
    check_arguments(type(pipe), call)
    _rehearse(pipe, call)
    if (target := _target(pipe)) is not None:
        _check_size(target, {name: call[name] for name in ("height", "width", "num_frames") if name in call})


def _without_weights(model: str) -> Any | None:
    """The pipeline with the diffusers components it was saved with, on no device, and without all others.

    ``None`` where there is nothing to read, or where this pipeline cannot be made so; loading will tell.
    """
    folder = _folder(model)
    if folder is None:
        return None
    try:
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        cls = pipeline_class(folder)
        arguments: dict[str, Any] = {}
        for parameter in list(inspect.signature(cls.__init__).parameters.values())[1:]:
            value = index.get(parameter.name)
            if isinstance(value, list):
                arguments[parameter.name] = _component(folder / parameter.name, *value)
            elif parameter.name in index or parameter.default is parameter.empty:
                arguments[parameter.name] = value
        return cls(**arguments)
    except Exception:
        return None


def _folder(model: str) -> Path | None:
    known = host().registry.models.get(model)
    if known is not None:
        return known.folder
    return Path(model) if Path(model).is_dir() else None


def _component(folder: Path, library: str | None, class_name: str | None) -> Any:
    import torch

    if library is None or class_name is None or library == "transformers":
        return None
    cls = getattr(importlib.import_module(library), class_name)
    with torch.device("meta") if issubclass(cls, torch.nn.Module) else nullcontext():
        return cls.from_config(cls.load_config(folder))


def _rehearse(pipe: Any, call: Mapping[str, Any]) -> None:
    """Call the pipeline up to where it has checked its arguments."""

    def check(own: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        own(*args, **kwargs)
        raise _Passed

    def compute(*_: Any, **__: Any) -> None:
        raise _Passed

    pipe.encode_prompt = compute
    if hasattr(pipe, "check_inputs"):
        pipe.check_inputs = partial(check, pipe.check_inputs)
    try:
        pipe(prompt="a", **call)
    except ValueError as error:
        if (text := explain(error, call)) is not None:
            raise ConfigError(text) from error
    except Exception:  # behind the checks, where what this pipeline lacks is missed
        return


def _target(pipe: Pipeline) -> Target | None:
    try:
        return Target.of(pipe)
    except HastenError:
        return None  # a family that cannot be accelerated can be run all the same


def _check_size(target: Target, sized: Mapping[str, Any]) -> None:
    """Models that generate scale by scale know their sizes; a table of positions has a largest one."""
    from hasten._adapters.base import LatentLayout, ScaleSchedule

    pipe, arguments = target.pipe, target.call_arguments(**sized)
    schedule = target.adapter.capability(ScaleSchedule)
    if schedule is not None:
        schedule.scales(pipe, arguments)
    layout = target.adapter.capability(LatentLayout)
    if layout is not None and sized and (problem := layout.oversize(pipe, arguments)) is not None:
        raise ConfigError(problem)
