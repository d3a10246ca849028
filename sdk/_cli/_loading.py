"""Loading a pipeline for a command: what can be known is checked first; no progress bars of the libraries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hasten._cli._preflight import check_arguments, check_before_loading
from hasten._errors import ConfigError
from hasten._placement import Placement
from hasten._solvers import use_solver

__all__ = ["load_quietly"]


def load_quietly(
    model: str, place: Placement, call: Mapping[str, Any] | None = None, solver: str | None = None
) -> Any:
    """The pipeline ``model`` on its device, in its number format, for calls with the arguments ``call``.

    Args:
        model: its name.
        place: device and number format.
        call: arguments of the calls.
        solver: in place of its own, by the name that a configuration has for it.

    Raises:
        ConfigError: the pipeline cannot be called so, has no such solver, or does not fit on the device.
        HastenError: the model cannot be loaded.
    """
    import diffusers.utils.logging
    import torch
    import transformers.utils.logging

    import hasten

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    check_before_loading(model, call or {})
    pipe = hasten.load(model, dtype=place.torch_dtype)
    check_arguments(type(pipe), call or {})
    if solver is not None:
        use_solver(pipe, solver)
    pipe.set_progress_bar_config(disable=True)
    try:
        if place.device.startswith("cuda:"):
            torch.cuda.set_device(place.device)  # for what asks for the current device: collectives
        return pipe.to(place.device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{model} cannot be moved to {place.device} in {place.dtype}: {reason}. Choose another --device or --dtype."
        ) from error
