"""What all networks of metrics share: a place, an identity, and a way to run without side effects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import nn

from hasten.eval.fingerprint import hash_weights
from hasten.extend import kept

__all__ = ["Network", "inference"]


@contextmanager
def inference(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients and no TF32 inside the block; the module's mode is put back after it.

    Dropout left on gives identical sets a distance, and TF32 moves features in the fourth digit.
    """
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        with ExitStack() as stack:
            for part in module.modules():
                stack.enter_context(kept(part, "training"))
            module.eval()
            stack.enter_context(torch.inference_mode())
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


class Network:
    """A model on a device.

    Args:
        model: moved to ``device``.
        name: what fingerprints call it.
        device: where to run.
    """

    def __init__(self, model: nn.Module, name: str, device: torch.device | str) -> None:
        self.model: Any = model.to(device)
        self.name = name
        self.device = torch.device(device)

    def to(self, device: torch.device | str) -> None:
        """Move the model there."""
        self.model.to(device)
        self.device = torch.device(device)

    @cached_property
    def weights(self) -> str:
        """Hash of the model's weights."""
        return hash_weights(self.model)
