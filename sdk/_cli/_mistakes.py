"""A pipeline's ``ValueError`` in the words of the command line."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

__all__ = ["explain", "refusing_pipeline"]

_MULTIPLE = re.compile(r"divisible by \(?(\d+)")


def refusing_pipeline(error: ValueError) -> str | None:
    """Class name of the pipeline that raised ``error`` in a call, ``None`` where it came from elsewhere.

    What the host or a technique raises inside of a call is a fault of theirs and no refusal.
    """
    diffusers = sys.modules.get("diffusers")
    frames = list(_frames(error))
    if diffusers is None or not frames or _is_ours(frames[-1]):
        return None
    for frame in frames:
        caller = frame.f_locals.get("self")
        if frame.f_code.co_name == "__call__" and isinstance(caller, diffusers.DiffusionPipeline):
            return type(caller).__name__
    return None


def explain(error: ValueError, call: Mapping[str, Any] | None = None) -> str | None:
    """One line about a call that a pipeline refused; ``None`` where the error came from elsewhere.

    Args:
        error: what was raised.
        call: arguments of the call, where they are known; a size is then suggested.
    """
    name = refusing_pipeline(error)
    if name is None:
        return None
    text = " ".join(str(error).split())
    multiple = _MULTIPLE.search(text)
    if multiple is None or not re.search(r"height|width", text, re.IGNORECASE):
        return f"{name} refuses this call: {text}"
    step, sides = int(multiple[1]), {key: (call or {}).get(key) for key in ("height", "width")}
    better = {key: max(step, side // step * step) for key, side in sides.items() if side and side % step}
    advice = " and ".join(f"{key} {side}" for key, side in better.items())
    if len(better) == 2 and len(set(better.values())) == 1:
        advice = str(better["height"])
    return f"height and width must be multiples of {step}" + (f": use {advice}" if advice else f"; {text}")


def _frames(error: BaseException) -> Iterator[FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _is_ours(frame: FrameType) -> bool:
    module = str(frame.f_globals.get("__name__", ""))
    return module.startswith("hasten.") and not module.startswith("hasten.pipelines.")
