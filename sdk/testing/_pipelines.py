"""What both contracts need to know: how to make a pipeline, and how to call it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

__all__ = ["PipelineContract"]


class PipelineContract(ABC):
    """What both contracts need to know: how to make a pipeline and how to call it.

    The pipeline has to take ``generator``, ``output_type="latent"`` and ``return_dict=False`` as those of diffusers do.
    The latents are the first item of the tuple that it then returns.

    Attributes:
        arguments: of the pipeline call, without those three.
    """

    __test__ = False
    arguments: ClassVar[Mapping[str, Any]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let pytest collect subclasses; the contracts themselves are not tests."""
        super().__init_subclass__(**kwargs)
        cls.__test__ = not cls.__name__.endswith("Contract")

    @abstractmethod
    def pipeline(self) -> Any:
        """A new pipeline, the same every time."""

    def call(self, pipe: Any, **changes: Any) -> Tensor:
        """Call ``pipe`` with the same noise every time; returns its latents (any shape, any floating dtype)."""
        fixed = {"generator": torch.Generator().manual_seed(0), "output_type": "latent", "return_dict": False}
        output: Tensor = pipe(**{**self.arguments, **fixed, **changes})[0]
        return output
