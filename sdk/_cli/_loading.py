"""Loading a pipeline for a command: no progress bars of the libraries, device and dtype checked."""

from __future__ import annotations

from typing import Any

from hasten._errors import ConfigError

__all__ = ["load_quietly"]


def load_quietly(model: str, device: str | None = None, dtype: str | None = None) -> Any:
    """The pipeline ``model``, on ``device``, in ``dtype``.

    Raises:
        ConfigError: if dtype or device do not exist.
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
    pipe.set_progress_bar_config(disable=True)
    if device is None:
        return pipe
    try:
        return pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {device} cannot be used: {error}") from error
