"""What a video family tells techniques about its frames: where they are in tensors, which modules mix them."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from hasten._adapters.tokens import configured_patch
from hasten._pipeline import Pipeline

if TYPE_CHECKING:
    from torch import Tensor, nn


__all__ = [
    "FrameAxis",
    "FrameLayer",
    "FrameMixing",
    "LayerKind",
    "Rotary",
    "VideoTokens",
    "frame_layers",
]


class LayerKind(Enum):
    """How a module depends on other frames, or on where its frames are in the video."""

    NORM = "norm"  # group normalisation with statistics over frames
    CONV = "conv"  # convolution over frames, zero-padded
    TEMPORAL = "temporal attention"  # tokens are frames, spatial positions are the batch
    ATTENTION = "attention"  # tokens of all frames, frame after frame
    ROTARY = "rotary"  # makes rotary embeddings from a latent's shape
    POSITIONS = "positions"  # adds embeddings that tell frames apart


@dataclass(frozen=True)
class FrameLayer:
    """A module of a denoiser that mixes frames, by its name below the denoiser.

    Args:
        name: of the module.
        kind: how it mixes them.
        reader: of a norm, the convolution over frames that reads its output, if one does, through functions of
            single values only.
    """

    name: str
    kind: LayerKind
    reader: str | None = None


@dataclass(frozen=True)
class FrameAxis:
    """Where frames are in a tensor.

    Args:
        dim: the axis. It may hold several entries per frame (tokens), as long as frames come one after another.
        merged: the axis is batch and frames in one, batch outermost.
    """

    dim: int
    merged: bool = False

    def take(self, tensor: Tensor, frames: int, part: range) -> Tensor:
        """The frames ``part`` of a tensor with ``frames`` frames."""
        tensor, dim = (
            (tensor.unflatten(self.dim, (-1, frames)), self.dim + 1) if self.merged else (tensor, self.dim)
        )
        each = tensor.shape[dim] // frames
        taken = tensor.narrow(dim, part.start * each, len(part) * each)
        return taken.flatten(self.dim, self.dim + 1) if self.merged else taken

    def take_all(self, value: Any, frames: int, part: range) -> Any:
        """:meth:`take` for a tensor, or for every tensor of a list or tuple. Values without this axis stay."""
        if isinstance(value, (list, tuple)):
            return type(value)(self.take_all(one, frames, part) for one in value)
        if isinstance(value, torch.Tensor) and self.holds(value, frames):
            return self.take(value, frames, part)
        return value

    def join(self, parts: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
        """Inverse of :meth:`take`: one tensor from parts of ``lengths`` frames."""
        if not self.merged:
            return torch.cat(list(parts), self.dim)
        apart = [p.unflatten(self.dim, (-1, n)) for p, n in zip(parts, lengths, strict=True)]
        return torch.cat(apart, self.dim + 1).flatten(self.dim, self.dim + 1)

    def holds(self, tensor: Tensor, frames: int) -> bool:
        """Whether the axis can be divided into ``frames`` frames."""
        return (
            tensor.ndim > self.dim
            and tensor.shape[self.dim] >= frames
            and tensor.shape[self.dim] % frames == 0
        )


class Rotary:
    """Rotary embeddings of tokens at any frame position, put together from a temporal and a spatial table.

    Args:
        temporal: cosine and sine at frame positions 0, 1, ..., each (positions, D); only temporal channels count.
        spatial: cosine and sine of the tokens of one frame, each (P, D).
        channels: which of the D channels are temporal, boolean (D,).
        halves: how channels are paired: 0 for neighbours, else the number of equal groups in which a channel of the
            first half is rotated with one of the second.
    """

    def __init__(
        self,
        temporal: tuple[Tensor, Tensor],
        spatial: tuple[Tensor, Tensor],
        channels: Tensor,
        halves: int = 0,
    ) -> None:
        self._temporal = temporal
        self._spatial = spatial
        self._channels = channels
        self.halves = halves

    def at(self, positions: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Cosine and sine of all tokens of frames at ``positions``, (len(positions) * P, D) each."""
        rows = self.rows(positions)
        tables = []
        for row, tokens in zip(rows, self._spatial, strict=True):
            table = torch.where(self._channels, row[:, None], tokens[None])
            tables.append(table.flatten(0, 1))
        return tables[0], tables[1]

    def rows(self, positions: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Cosine and sine of the temporal channels at ``positions``: rows of the table, or angles beyond it."""
        cos, sin = self._temporal
        if all(position == int(position) and 0 <= position < len(cos) for position in positions):
            index = torch.tensor(
                [int(position) for position in positions], device=cos.device, dtype=torch.long
            )
            return cos[index], sin[index]
        # Position 1 has the frequencies themselves as angles, at most one radian in every family.
        frequency = torch.atan2(sin[1].double(), cos[1].double())
        angles = torch.tensor(positions, device=cos.device, dtype=torch.float64)[:, None] * frequency
        return angles.cos().to(cos.dtype), angles.sin().to(sin.dtype)


class FrameMixing(ABC):
    """Frames of one family.

    Frames are counted in temporal patches of the denoiser, which are latent frames in nearly all families.
    """

    latents: ClassVar[FrameAxis] = FrameAxis(2)
    """Frames in the latents that the denoiser gets."""
    sample: ClassVar[FrameAxis] = FrameAxis(2)
    """Frames in the sample that the scheduler steps."""
    text: ClassVar[tuple[str, ...]] = ("encoder_hidden_states",)
    """Arguments of the denoiser that depend on the prompt."""
    joint: ClassVar[Literal["first", "last"] | None] = None
    """Where text tokens are in the sequence of self-attention, if they are there."""
    scope: ClassVar[tuple[int, int]] = (8, 16)
    """Frames of local context per side and global frames, so that a query sees about as many as in training."""
    global_share: ClassVar[float] = 0.5
    """Global frames as a share of the trained length, where that is known of the very model."""
    rotary_argument: ClassVar[str | None] = None
    """Argument of an attention module with the rotary embeddings."""
    prepared: ClassVar[Mapping[str, FrameAxis | None]] = {"prepare_latents": None}
    """Methods of the pipeline that make latents or conditions of the whole video, and where frames are in their
    tensors; ``None`` is the place in the latents. A process gets its own frames of them."""
    along: ClassVar[Mapping[str, FrameAxis]] = {}
    """Other arguments of the denoiser with frames, made by the pipeline from the latents of this process."""
    whole: ClassVar[Mapping[str, FrameAxis]] = {}
    """Other arguments of the denoiser with all frames of the video."""
    beside: ClassVar[Mapping[str, Mapping[str, FrameAxis]]] = {}
    """Networks of the pipeline that compute every frame alone, such as control networks, and those of their arguments
    that have all frames of the video, by name."""
    draws_in_loop: ClassVar[bool] = False
    """Whether the pipeline draws noise in its loop, beside the scheduler."""
    resumable: ClassVar[bool] = True
    """Whether the pipeline calls its scheduler once a step, as resuming from a checkpoint needs."""

    @abstractmethod
    def layers(self, root: nn.Module) -> Iterator[FrameLayer]:
        """Every module of the denoiser that mixes frames or tells them apart."""

    @abstractmethod
    def frame_free(self, root: nn.Module) -> frozenset[str]:
        """Attention layers known to stay inside a frame or to look at text only."""

    def trained_frames(self, pipe: Pipeline) -> int | None:  # noqa: ARG002
        """How many frames the released models were trained with; ``None`` where that is not known."""
        return None

    def patch(self, pipe: Pipeline) -> int:  # noqa: ARG002
        """Latent frames per temporal patch."""
        return 1

    def limit(self, pipe: Pipeline) -> int | None:  # noqa: ARG002
        """Frames beyond which the stock denoiser raises, for want of position embeddings."""
        return None

    def refusal(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> str | None:  # noqa: ARG002
        """Why a call with these arguments cannot be divided by frames, or ``None``."""
        if arguments.get("guidance_rescale"):
            return "guidance_rescale needs statistics of the whole video; call with guidance_rescale=0"
        return None

    def clip_arguments(
        self,
        pipe: Pipeline,  # noqa: ARG002
        kwargs: Mapping[str, Any],
        clip: range,
        held: range,
        frames: int,
    ) -> dict[str, Any]:
        """Arguments of the denoiser for one clip.

        Args:
            pipe: the pipeline.
            kwargs: arguments of this rank's forward, with the frames ``held``.
            clip: frames of the clip.
            held: frames of this rank.
            frames: frames of the whole video.
        """
        name = self.latents_argument(kwargs)
        part = range(clip.start - held.start, clip.stop - held.start)
        changed = {**kwargs, name: self.latents.take(kwargs[name], len(held), part)}
        for other, axis in self.along.items():
            if other in kwargs:
                changed[other] = axis.take_all(kwargs[other], len(held), part)
        for other, axis in self.whole.items():
            if other in kwargs:
                changed[other] = axis.take_all(kwargs[other], frames, clip)
        return changed

    def latents_argument(self, kwargs: Mapping[str, Any]) -> str:
        """Name of the argument with the latents: the denoiser's first."""
        return next(iter(kwargs))

    def rotary(self, module: Any, inner: Any, bound: Mapping[str, Any], frames: int) -> Rotary:
        """Rotary embeddings of the video.

        Args:
            module: the module of kind ``ROTARY``.
            inner: computes the module of kind ``ROTARY``.
            bound: its arguments for one clip, by name.
            frames: frames of the whole video.
        """
        raise NotImplementedError(f"{type(self).__name__} has no rotary module")

    def given_rotary(self, pipe: Pipeline, kwargs: Mapping[str, Any], frames: int) -> Rotary | None:  # noqa: ARG002
        """Rotary embeddings of the whole video, where the pipeline makes them and not the denoiser.

        Args:
            pipe: the pipeline.
            kwargs: arguments of this rank's forward.
            frames: frames of the whole video.
        """
        return None

    def positions(self, module: nn.Module, bound: Mapping[str, Any], clip: range, frames: int) -> Any:
        """The output of a module of kind ``POSITIONS`` for the frames of a clip.

        Args:
            module: the module.
            bound: its arguments for one clip, by name.
            clip: frames of the clip.
            frames: frames of the whole video.
        """
        raise NotImplementedError(f"{type(self).__name__} has no module that adds positions")

    def as_argument(self, table: tuple[Tensor, Tensor]) -> Any:
        """Rotary embeddings (T, D) in the shape that attention modules of the family take."""
        return table

    def as_output(self, table: tuple[Tensor, Tensor], bound: Mapping[str, Any]) -> Any:  # noqa: ARG002
        """Rotary embeddings (T, D) as the module of kind ``ROTARY`` returns them.

        Args:
            table: cosine and sine of the tokens of a clip.
            bound: arguments of the module, by name.
        """
        return self.as_argument(table)


def frame_layers(mixing: FrameMixing, denoiser: str, root: nn.Module) -> dict[str, FrameLayer]:
    """The modules that mix frames, by qualified name; their names are qualified, too."""
    found = {}
    for layer in mixing.layers(root):
        name = f"{denoiser}.{layer.name}"
        reader = None if layer.reader is None else f"{denoiser}.{layer.reader}"
        found[name] = FrameLayer(name, layer.kind, reader)
    return found


def self_attentions(root: nn.Module, blocks: str, name: str) -> Iterator[FrameLayer]:
    """The layers ``<blocks>.<i>.<name>`` as attention over the tokens of all frames."""
    for index, _ in enumerate(root.get_submodule(blocks)):  # type: ignore[arg-type]
        yield FrameLayer(f"{blocks}.{index}.{name}", LayerKind.ATTENTION)


def attention_names(root: nn.Module) -> frozenset[str]:
    """Every module with an attention processor."""
    return frozenset(
        name
        for name, module in root.named_modules()
        if hasattr(module, "set_processor") and getattr(module, "processor", None) is not None
    )


class VideoTokens(FrameMixing):
    """Transformers whose self-attention sees the tokens of all frames, frame after frame.

    Rotary embeddings come from a module ``rope`` that looks at the shape of the latents.
    """

    blocks: ClassVar[Mapping[str, str]] = {"transformer_blocks": "attn1"}
    """Lists of blocks, and the name of self-attention in their blocks."""
    rope: ClassVar[str | None] = "rope"
    """Name of the module that makes rotary embeddings, if there is one."""
    elsewhere: ClassVar[str] = r"\.attn2$"
    """Pattern of the names of attention layers that look at something else, such as text."""
    rotary_argument = "image_rotary_emb"

    def layers(self, root: nn.Module) -> Iterator[FrameLayer]:
        """Self-attention and the rotary module."""
        if self.rope is not None:
            yield FrameLayer(self.rope, LayerKind.ROTARY)
        for blocks, name in self.blocks.items():
            if getattr(root, blocks, None) is not None:
                yield from self_attentions(root, blocks, name)

    def frame_free(self, root: nn.Module) -> frozenset[str]:
        """Attention to text and pictures."""
        return frozenset(name for name in attention_names(root) if re.search(self.elsewhere, name))

    def patch(self, pipe: Pipeline) -> int:
        """``patch_size_t`` of the transformer, or the first of its ``patch_size``."""
        return configured_patch(pipe.transformer.config)[0]

    def rotary(self, module: Any, inner: Any, bound: Mapping[str, Any], frames: int) -> Rotary:
        """One call with one spatial position, one with one frame."""
        x, rest = bound["hidden_states"], {k: v for k, v in bound.items() if k != "hidden_states"}
        each, *sides = self.patch_sizes(module)
        point = x.new_empty(1, 1, 1, 1, 1).expand(1, 1, frames * each, *sides)
        return self.joined(module, inner(point, **rest), inner(x[:1, :1, :each], **rest))

    def patch_sizes(self, module: Any) -> tuple[int, int, int]:
        """Patch of the denoiser in frames, rows and columns, from the rotary module."""
        return module.patch_size_t, module.patch_size, module.patch_size

    def joined(self, module: Any, temporal: tuple[Tensor, Tensor], spatial: tuple[Tensor, Tensor]) -> Rotary:
        """The two tables as one."""
        return separable(temporal, spatial, module.rope_dim[0])


def separable(temporal: tuple[Tensor, Tensor], spatial: tuple[Tensor, Tensor], first: int) -> Rotary:
    """A rotary table whose first ``first`` channels are the temporal ones."""
    channels = torch.arange(temporal[0].shape[1], device=temporal[0].device) < first
    return Rotary(temporal, spatial, channels)
