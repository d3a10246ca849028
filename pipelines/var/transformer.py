"""The transformer of VAR and Infinity: predicts all tokens of a scale at once, from the scales before it.

Sources: VAR (Tian et al. 2024, arXiv 2404.02905) and Infinity (Han et al. 2024, arXiv 2412.04431).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.extend import ConfigError, KVCache
from hasten.pipelines.var.layers import (
    Attend,
    Block,
    BlockInputs,
    RotaryTable,
    SingleLinear,
    TextPool,
    attention,
    normalise,
    rms_normalise,
    rotary_phases,
)
from hasten.schedules.scales import Grid, Schedule, check_schedule, token_ends

__all__ = ["Conditioning", "NextScaleTransformer"]


@dataclass
class Conditioning:
    """The condition of one generation, and what the transformer computes from it once for all scales.

    Args:
        schedule: token grids of the generation.
        labels: class numbers (N,); the number of classes means "no class".
        text: states of the text encoder (N, tokens, width).
        text_mask: boolean (N, tokens), ``False`` for padding; ``None`` if there is no padding.
        unconditional: boolean (N,), rows whose text is replaced by the learned null text of the same length.
        last_grid: finest grid of the model for this aspect ratio, for rotary positions; by default the last of the
            schedule.
    """

    schedule: Schedule
    labels: Tensor | None = None
    text: Tensor | None = None
    text_mask: Tensor | None = None
    unconditional: Tensor | None = None
    last_grid: Grid | None = None
    parts: list[tuple[Tensor, ...]] = field(default_factory=list, repr=False)
    """Modulations of every block; empty until the first forward."""
    head: tuple[Tensor, ...] = field(default=(), repr=False)
    start: Tensor | None = field(default=None, repr=False)
    text_kv: list[tuple[Tensor, Tensor, Tensor | None]] = field(default_factory=list, repr=False)
    rotary: dict[int, RotaryTable] = field(default_factory=dict, repr=False)

    def keep_rows(self, rows: int) -> None:
        """Keep only the first ``rows`` rows of the batch."""
        self.parts = [tuple(part[:rows] for part in parts) for parts in self.parts]
        self.head = tuple(part[:rows] for part in self.head)
        self.text_kv = [
            (key[:rows], value[:rows], None if mask is None else mask[:rows])
            for key, value, mask in self.text_kv
        ]


class NextScaleTransformer(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Decoder-only transformer over scales.

    Args:
        num_layers: blocks.
        hidden_size: width ``C``.
        num_heads: heads of self and cross attention.
        token_dim: channels of an input token (latent channels of the tokenizer, or bits).
        num_outputs: logits of a token: the size of the codebook, or two per bit.
        schedule: token grids of the absolute positions, or the default grids of a model with rotary positions.
        num_levels: length of the table of scale embeddings.
        condition: ``"class"`` or ``"text"``; with text, every block has cross-attention.
        num_classes: number of classes.
        text_width: channels of the text encoder's states.
        text_tokens: largest number of text tokens, which is the length of the learned null text.
        pool_heads: attention heads of the layer that pools the text into one vector.
        shared_modulation: one modulation layer for all blocks, plus a table per block.
        rotary: two-dimensional rotary positions instead of a table.
    """

    _supports_gradient_checkpointing = False
    _no_split_modules = ["Block"]  # type: ignore[assignment]  # noqa: RUF012

    @register_to_config
    def __init__(
        self,
        num_layers: int = 16,
        hidden_size: int = 1024,
        num_heads: int = 16,
        token_dim: int = 32,
        num_outputs: int = 4096,
        schedule: Sequence[Sequence[int]] = ((1, 1), (2, 2)),
        num_levels: int = 10,
        condition: Literal["class", "text"] = "class",
        num_classes: int = 1000,
        text_width: int = 2048,
        text_tokens: int = 512,
        pool_heads: int = 16,
        shared_modulation: bool = False,
        rotary: bool = False,
    ) -> None:
        super().__init__()
        width = hidden_size
        self.schedule = check_schedule(schedule)
        self.start_pos = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = (
            None if rotary else nn.Parameter(torch.zeros(1, token_ends(self.schedule)[-1], width))
        )
        self.level_embed = nn.Embedding(num_levels, width)
        self.token_embed = nn.Linear(token_dim, width)
        if condition == "class":
            self.class_embed = nn.Embedding(num_classes + 1, width)
        else:
            self._add_text_layers(text_tokens, text_width, pool_heads)
        self.ada_shared = nn.Linear(width, 6 * width) if shared_modulation else None
        cross = condition == "text"
        self.blocks = nn.ModuleList(
            Block(width, num_heads, shared=shared_modulation, cross=cross) for _ in range(num_layers)
        )
        self.head_norm = nn.Linear(width, 2 * width)
        self.proj_out = SingleLinear(width, num_outputs)

    def _add_text_layers(self, tokens: int, text_width: int, heads: int) -> None:
        width = self.start_pos.shape[-1]
        self.null_text = nn.Parameter(torch.randn(tokens, text_width) / math.sqrt(text_width))
        self.text_norm = nn.Parameter(torch.ones(text_width))
        self.text_pool = TextPool(text_width, width, heads)
        self.text_proj = nn.Sequential(nn.Linear(text_width, width), nn.GELU("tanh"), nn.Linear(width, width))

    def forward(
        self, hidden_states: Tensor, scale: int, conditioning: Conditioning, cache: KVCache
    ) -> Tensor:
        """Logits of every token of one scale.

        Args:
            hidden_states: (N, n, token_dim), the picture so far at the grid of this scale; scale 0 uses only its
                batch size.
            scale: index of the scale.
            conditioning: condition of this generation; the first forward fills in what all scales share.
            cache: keys and values of the earlier scales.

        Returns:
            float32 (N, n, num_outputs).
        """
        self._prepare(conditioning)
        x = self._embed(hidden_states, scale, conditioning)
        rotary = self._rotary(scale, conditioning, x.device)
        for layer, block in enumerate(self.blocks):
            attend = partial(cache.attend, layer, scale)
            x = block(x, self._inputs(layer, conditioning, rotary, attend))
        return self._logits(x, conditioning)

    def teacher_forced(self, hidden_states: Tensor, conditioning: Conditioning) -> Tensor:
        """Logits of all scales in one pass over known tokens; each scale attends to itself and the earlier ones.

        Args:
            hidden_states: (N, T, token_dim), the concatenated inputs of :meth:`forward` of the first or of all scales.
            conditioning: condition of the batch.

        Returns:
            float32 (N, T, num_outputs).
        """
        self._prepare(conditioning)
        ends = (0, *token_ends(conditioning.schedule))
        schedule = conditioning.schedule[: ends.index(hidden_states.shape[1])]
        ends = ends[: len(schedule) + 1]
        parts = [
            self._embed(hidden_states[:, ends[k] : ends[k + 1]], k, conditioning)
            for k in range(len(schedule))
        ]
        x = torch.cat(parts, dim=1)
        level = torch.repeat_interleave(torch.arange(len(schedule)), torch.tensor(ends).diff()).to(x.device)
        mask = level[:, None] >= level[None, :]

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            return attention(query, key, value, mask, scale=1.0)

        turns = [self._rotary(k, conditioning, x.device) for k in range(len(schedule))]
        rotary: Any = None if turns[0] is None else tuple(torch.cat(pair) for pair in zip(*turns))
        for layer, block in enumerate(self.blocks):
            x = block(x, self._inputs(layer, conditioning, rotary, attend))
        return self._logits(x, conditioning)

    def _inputs(
        self, layer: int, known: Conditioning, rotary: RotaryTable | None, attend: Attend
    ) -> BlockInputs:
        text = known.text_kv[layer] if known.text_kv else None
        return BlockInputs(known.parts[layer], rotary, text, attend)

    def _prepare(self, known: Conditioning) -> None:
        """Compute once what all scales share: modulations, keys and values of the text, the start token."""
        if known.parts:
            return
        self._check(known)
        condition = self._class_condition(known) if known.labels is not None else self._text_condition(known)
        active = F.silu(condition).to(self.head_norm.weight.dtype)
        common = None if self.ada_shared is None else self.ada_shared(active)
        known.parts = [block.norm(condition, common) for block in self.blocks]  # type: ignore[operator]
        known.head = self.head_norm(active).float()[:, None].chunk(2, dim=-1)
        known.start = condition.float()[:, None] + self.start_pos.float()

    def _check(self, known: Conditioning) -> None:
        if len(known.schedule) > self.config["num_levels"]:
            raise ConfigError(
                f"the schedule has {len(known.schedule)} scales, this model has embeddings for "
                f"{self.config['num_levels']}"
            )
        if self.pos_embed is not None and known.schedule != self.schedule:
            raise ConfigError(
                f"this model has positions for the schedule {_sides(self.schedule)} only, not for "
                f"{_sides(known.schedule)}"
            )
        wanted = self.config["condition"]
        if (known.labels is None) == (wanted == "class") or (known.text is None) == (wanted == "text"):
            raise ConfigError(f"this model is conditioned on {wanted}; give it that and nothing else")

    def _class_condition(self, known: Conditioning) -> Tensor:
        assert known.labels is not None
        embedded: Tensor = self.class_embed(known.labels.to(self.start_pos.device))
        return embedded

    def _text_condition(self, known: Conditioning) -> Tensor:
        """Pooled text (N, C); also stores the keys and values of the text for every block."""
        assert known.text is not None
        device = self.start_pos.device
        text = known.text.to(device).float()
        if known.unconditional is not None:
            null = self.null_text[: text.shape[1]].float()
            if len(null) < text.shape[1]:
                raise ConfigError(
                    f"the text has {text.shape[1]} tokens; this model's null text has {len(null)}"
                )
            text = torch.where(known.unconditional.to(device).view(-1, 1, 1), null, text)
        mask = None if known.text_mask is None else known.text_mask.to(device)[:, None, None]
        text = rms_normalise(text) * self.text_norm.float()
        memory = self.text_proj(text.to(self.head_norm.weight.dtype))
        known.text_kv = [block.cross_attn.text_kv(memory, mask) for block in self.blocks]  # type: ignore[union-attr, operator]
        pooled: Tensor = self.text_pool(text, mask)
        return pooled

    def _embed(self, hidden_states: Tensor, scale: int, known: Conditioning) -> Tensor:
        """float32 (N, n, C): the start token or the embedded tokens, with level and position added."""
        assert known.start is not None
        x: Tensor
        if scale == 0:
            x = known.start
        else:
            x = self.token_embed(hidden_states.to(self.token_embed.weight.dtype)).float()
        x = x + self.level_embed(torch.tensor(scale, device=x.device)).float()
        if self.pos_embed is not None:
            end = token_ends(known.schedule)[scale]
            x = x + self.pos_embed[:, end - x.shape[1] : end].float()
        return x

    def _rotary(self, scale: int, known: Conditioning, device: torch.device) -> RotaryTable | None:
        if self.pos_embed is not None:
            return None
        if scale not in known.rotary:
            dim = self.config["hidden_size"] // self.config["num_heads"]
            cos, sin = rotary_phases(known.schedule[scale], known.last_grid or known.schedule[-1], dim)
            known.rotary[scale] = (cos.to(device), sin.to(device))
        return known.rotary[scale]

    def _logits(self, x: Tensor, known: Conditioning) -> Tensor:
        scale, shift = known.head
        logits: Tensor = self.proj_out(normalise(x) * (1 + scale) + shift)
        return logits


def _sides(schedule: Schedule) -> str:
    return " ".join(f"{rows}x{columns}" for rows, columns in schedule)
