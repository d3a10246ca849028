"""Where a pipeline call spends its time: text encoders, denoiser, decoder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from hasten.eval.efficiency.timing import StageClock, stage_clock
from hasten.extend import Pipeline, swapped

__all__ = ["timed_stages"]

_STAGES = {"text_encoder": "text encoder", "transformer": "denoiser", "unet": "denoiser", "prior": "denoiser"}
"""How the name of a component begins -> its stage."""


@contextmanager
def timed_stages(pipe: Pipeline, device: torch.device | str | None = None) -> Iterator[StageClock]:
    """Time the stages of the pipeline calls inside the ``with`` block.

    The device is synchronised at every boundary, which costs overlap: take totals from another run.

    Args:
        pipe: a diffusers pipeline; it is left as it was.
        device: a CUDA device is synchronised.

    Yields:
        The clock, with the stages ``"text encoder"``, ``"denoiser"`` and ``"decoder"`` as far as there are any.
    """
    clock = stage_clock(device)
    with ExitStack() as stack:
        for name, module in getattr(pipe, "components", {}).items():
            stage = next((_STAGES[prefix] for prefix in _STAGES if name.startswith(prefix)), None)
            if stage is not None and isinstance(module, nn.Module):
                stack.enter_context(_timed_forward(clock, stage, module))
            decode = getattr(module, "decode", None)
            if callable(decode) and isinstance(module, nn.Module):
                stack.enter_context(swapped(module, "decode", clock.wrap("decoder", decode)))
        yield clock


@contextmanager
def _timed_forward(clock: StageClock, stage: str, module: nn.Module) -> Iterator[None]:
    running: list[Any] = []

    def begin(*_: Any) -> None:
        block = clock.stage(stage)
        block.__enter__()
        running.append(block)

    def end(*_: Any) -> None:
        running.pop().__exit__(None, None, None)

    handles = [module.register_forward_pre_hook(begin), module.register_forward_hook(end, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
