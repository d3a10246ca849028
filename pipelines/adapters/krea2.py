"""Krea 2 (diffusers ``Krea2Transformer2DModel``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import override

from hasten.extend import (
    Adapter,
    FlowPath,
    Guidance,
    JointTokens,
    LatentSize,
    PackedLayout,
    Path,
    Pipeline,
    unknown_size,
)
from hasten.pipelines.adapters.untried import RESIZING


class Krea2Layout(PackedLayout):
    """2x2-packed tokens with ``position_ids`` (text + L, 3): 0, row, column."""

    resizing = RESIZING
    even_sigmas = True

    guidance = Guidance.SEQUENTIAL

    @override
    def path(self, pipe: Pipeline) -> Path:
        """Rectified flow, told ``t``."""
        return FlowPath(scale=1.0)

    @override
    def grid(self, pipe: Pipeline, kwargs: Mapping[str, Any]) -> tuple[int, int]:
        """Counted in the positions."""
        ours = kwargs["position_ids"][kwargs["encoder_hidden_states"].shape[1] :]
        columns = int((ours[:, 1] == 0).sum())
        return len(ours) // columns, columns

    @override
    def positions(self, pipe: Pipeline, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """The pipeline's own maker."""
        device, text = kwargs["position_ids"].device, kwargs["encoder_hidden_states"].shape[1]
        ids = pipe.prepare_position_ids(text, size.height // self.side, size.width // self.side, device)
        return {"position_ids": ids}

    @override
    def default_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """The pipeline has its default in the signature."""
        raise unknown_size(pipe)


class Krea2Tokens(JointTokens):
    """Text, then the picture."""

    @override
    def patch(self, denoiser: Any) -> tuple[int, int]:
        """The pipeline packs 2x2 latent pixels."""
        return 1, 2


ADAPTER = Adapter(
    family="krea2",
    pipelines=("Krea2Pipeline",),
    capabilities=(Krea2Layout(), Krea2Tokens(r"transformer_blocks\.\d+\.attn", "before")),
    models=("Krea2Transformer2DModel",),
)
