"""Loading a pipeline for a command: no progress bars of the libraries; device, dtype and call checked."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from hasten._errors import ConfigError

__all__ = ["load_quietly"]

_OPTIONS = {"num_inference_steps": "steps", "num_frames": "frames"}
"""Arguments of a pipeline call whose option has another name."""


def load_quietly(
    model: str, device: str | None = None, dtype: str | None = None, call: Iterable[str] = ()
) -> Any:
    """The pipeline ``model``, on ``device``, in ``dtype``, for calls with the arguments ``call``.

    Raises:
        ConfigError: if dtype or device do not exist, or the pipeline has no such argument.
        HastenError: if the model cannot be loaded.
    """
    import diffusers.utils.logging
    import torch
    import transformers.utils.logging

    import hasten

    options: dict[str, Any] = {}
    if dtype is not None:
        options["torch_dtype"] = getattr(torch, dtype, None)
        if not isinstance(options["torch_dtype"], torch.dtype):
            raise ConfigError(f"--dtype {dtype} is not a torch dtype; use float32, bfloat16 or float16")
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    pipe = hasten.load(model, **options)
    _check_call(pipe, call)
    pipe.set_progress_bar_config(disable=True)
    if device is None:
        return pipe
    try:
        return pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device} cannot be used: {error}") from error


def _check_call(pipe: Any, names: Iterable[str]) -> None:
    parameters = inspect.signature(type(pipe).__call__).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in names:
        if name not in parameters:
            option = _OPTIONS.get(name, name)
            raise ConfigError(f"{type(pipe).__name__} has no argument {name!r}: leave out `{option}`")
