"""Latent layouts that families share: plain tensors, 2x2-packed tokens, one token per latent pixel.

A family adds its facts: argument names, pixel factors, position arguments.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from typing_extensions import override

from hasten._adapters.base import LatentLayout, LatentSize, Prediction
from hasten._adapters.conditions import Channels, resize_clean, resize_features
from hasten._adapters.paths import FlowPath, Path
from hasten._errors import UnsupportedError
from hasten._pipeline import Pipeline, Scheduler
from hasten.schedules.noise import NoiseLevel

if TYPE_CHECKING:
    from torch import Tensor


class ImageLayout(LatentLayout):
    """What all layouts have in common; alone, the layout of plain (B, C, H, W) latents."""

    latents: ClassVar[str] = "hidden_states"
    """Name of the denoiser argument with the latents."""
    timestep: ClassVar[str] = "timestep"
    """Name of the denoiser argument with the timestep."""
    factor: ClassVar[str] = "vae_scale_factor"
    """Pipeline attribute: image pixels per latent pixel."""
    ndim: ClassVar[int] = 4
    """Dimensions of a pipeline's unpacked ``latents`` argument; packed ones don't tell their extent."""
    resizing: ClassVar[str | None] = None
    """Why the pipeline's loop cannot go on with latents of another size between two steps, where that is so."""

    @abstractmethod
    def path(self, pipe: Pipeline) -> Path:
        """Noise path of the family."""

    def positions(self, pipe: Pipeline, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:  # noqa: ARG002
        """Arguments that depend on the latent extent, for ``size``."""
        return {}

    def channels(self, pipe: Pipeline, count: int) -> Channels:  # noqa: ARG002
        """Which of the ``count`` channels of the unpacked latents argument are noisy, masks, clean latents."""
        return Channels()

    def default_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:  # noqa: ARG002
        """Image height and width of a call that names none."""
        side: int = pipe.default_sample_size * self.scale(pipe)
        return side, side

    def scale(self, pipe: Pipeline) -> int:
        """Image pixels per latent pixel."""
        scale: int = getattr(pipe, self.factor)
        return scale

    # --- noise

    @override
    def prediction(self, pipe: Pipeline) -> Prediction:
        """What the path says."""
        return self.path(pipe).prediction(pipe)

    @override
    def level(self, pipe: Pipeline, kwargs: Mapping[str, Any]) -> NoiseLevel:
        """What the path says of the timestep argument."""
        return self.path(pipe).level(pipe, kwargs[self.timestep])

    @override
    def refusal(self, pipe: Pipeline) -> str | None:
        """A scheduler of another path is refused."""
        return self.fixed or self.clock_refusal(pipe) or self.path(pipe).refusal(pipe)

    @override
    def resizing_refusal(self, pipe: Pipeline) -> str | None:
        """As the class says."""
        return self.resizing

    @override
    def planned_levels(self, pipe: Pipeline, scheduler: Scheduler) -> list[NoiseLevel] | None:
        """What the path says."""
        return self.path(pipe).planned(pipe, scheduler)

    @override
    def clock_refusal(self, pipe: Pipeline) -> str | None:
        """What the path says."""
        return self.path(pipe).clock_refusal(pipe)

    @override
    def flows(self, pipe: Pipeline) -> bool:
        """Whatever the scheduler's ``prediction_type``."""
        return isinstance(self.path(pipe), FlowPath)

    # --- forward

    @override
    def size(self, pipe: Pipeline, kwargs: Mapping[str, Any]) -> LatentSize:
        """Extent of the unpacked latents."""
        return _extent(self.decode(pipe, kwargs))

    @override
    def decode(self, pipe: Pipeline, kwargs: Mapping[str, Any]) -> Tensor:
        """The noisy channels of the argument."""
        whole = self.unpack(pipe, kwargs, kwargs[self.latents])
        return whole[:, self.channels(pipe, whole.shape[1]).noisy]

    @override
    def encode(
        self, pipe: Pipeline, kwargs: Mapping[str, Any], latent: Tensor, level: NoiseLevel
    ) -> dict[str, Any]:
        """Swap latents and timestep, and whatever depends on the extent, where they change."""
        size = _extent(latent)
        changed = {**kwargs, self.latents: self.pack(pipe, kwargs, latent)}
        if level != self.level(pipe, kwargs):
            changed[self.timestep] = self.retime(kwargs[self.timestep], self.path(pipe).timestep(pipe, level))
        before = self.size(pipe, kwargs)
        if size != before:
            changed.update(self.positions(pipe, kwargs, size))
            for name in self.controls:
                if kwargs.get(name) is not None:
                    changed[name] = resize_features(kwargs[name], before, size)
        return changed

    def retime(self, timestep: Any, value: float) -> Any:
        """``timestep`` with another value. Integers become floats: the value is fractional.

        One number expanded over the batch stays that: compiled denoisers make a graph for each layout in memory.
        """
        like = torch.as_tensor(timestep)
        dtype = like.dtype if like.is_floating_point() else torch.float32
        if not any(like.stride()):
            return torch.full((), value, dtype=dtype, device=like.device).expand(like.shape)
        return torch.full_like(like, value, dtype=dtype)

    @override
    def decode_output(self, pipe: Pipeline, kwargs: Mapping[str, Any], sample: Any) -> Tensor:
        """Unpacked like the latents."""
        return self.unpack(pipe, kwargs, sample)

    @override
    def encode_output(self, pipe: Pipeline, kwargs: Mapping[str, Any], latent: Tensor) -> Any:
        """Arranged like the latents."""
        return self.arrange(latent.to(_dtype(kwargs[self.latents])))

    def unpack(self, pipe: Pipeline, kwargs: Mapping[str, Any], packed: Any) -> Tensor:  # noqa: ARG002
        """Latents or outputs in the order (B, C, [F,] H, W)."""
        result: Tensor = packed
        return result

    def arrange(self, latent: Tensor) -> Any:
        """Inverse of :meth:`unpack`."""
        return latent

    def pack(self, pipe: Pipeline, kwargs: Mapping[str, Any], latent: Tensor) -> Any:
        """The latents argument for ``latent``, conditions that came with it included."""
        return self.arrange(self.conditioned(pipe, kwargs, latent.to(_dtype(kwargs[self.latents]))))

    def conditioned(self, pipe: Pipeline, kwargs: Mapping[str, Any], latent: Tensor) -> Tensor:
        """``latent`` with the channels around it, which are resized to its extent."""
        whole = self.unpack(pipe, kwargs, kwargs[self.latents])
        return (
            latent
            if whole.shape[1] == latent.shape[1]
            else self.channels(pipe, whole.shape[1]).resized(whole, latent)
        )

    # --- pipeline call

    @override
    def pixels(self, pipe: Pipeline, size: LatentSize) -> tuple[int, int]:
        """Latent extent times the autoencoder's factor."""
        return size.height * self.scale(pipe), size.width * self.scale(pipe)

    @override
    def call_size(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> LatentSize:
        """From given latents, else ``height`` and ``width``, rounded down as the pipelines do."""
        given = arguments.get("latents")
        if isinstance(given, torch.Tensor) and given.ndim == self.ndim:
            return self.given_size(given)
        height, width = self.call_pixels(pipe, arguments)
        step = self.scale(pipe) * self.multiple
        return LatentSize(
            height // step * self.multiple, width // step * self.multiple, self.call_frames(pipe, arguments)
        )

    def given_size(self, latents: Tensor) -> LatentSize:
        """Extent of the pipeline's ``latents`` argument."""
        return _extent(latents)

    def call_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """Image height and width of a call."""
        height, width = arguments.get("height"), arguments.get("width")
        if height and width:
            return int(height), int(width)
        default = self.default_pixels(pipe, arguments)
        return int(height or default[0]), int(width or default[1])

    def call_frames(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> int | None:  # noqa: ARG002
        """Latent frames of a call; none for images."""
        return None


class VideoLayout(ImageLayout):
    """Plain (B, C, F, H, W) latents.

    Frames whose tokens have timestep 0 hold a given picture. They are clean at every level, so they are
    resized in natural amplitude, and their timestep stays 0.
    """

    factor = "vae_scale_factor_spatial"
    frame_factor: ClassVar[str] = "vae_scale_factor_temporal"
    """Pipeline attribute: frames per latent frame, the first one counted apart."""
    ndim = 5

    @override
    def default_pixels(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> tuple[int, int]:
        """Video pipelines have their default in the signature, so that it is among the arguments."""
        raise unknown_size(pipe)

    @override
    def call_frames(self, pipe: Pipeline, arguments: Mapping[str, Any]) -> int | None:
        """``num_frames``, or as many as the given video has; rounded down to whole latent frames."""
        frames = arguments.get("num_frames") or len(arguments["video"])
        return (frames - 1) // int(getattr(pipe, self.frame_factor)) + 1

    @override
    def encode(
        self, pipe: Pipeline, kwargs: Mapping[str, Any], latent: Tensor, level: NoiseLevel
    ) -> dict[str, Any]:
        """Like images, with clean frames and one timestep per frame or token taken care of."""
        clean = self.clean_frames(pipe, kwargs)
        if clean is not None:
            content = resize_clean(self.decode(pipe, kwargs), _extent(latent))
            latent = torch.where(clean[:, None, :, None, None], content, latent)
        changed = super().encode(pipe, kwargs, latent, level)
        told = kwargs[self.timestep]
        if isinstance(told, torch.Tensor) and told.ndim >= 2:
            changed[self.timestep] = self._fit(
                told, changed[self.timestep], self.size(pipe, kwargs), _extent(latent)
            )
        return changed

    def clean_frames(self, pipe: Pipeline, kwargs: Mapping[str, Any]) -> Tensor | None:
        """Which frames are given and carry no noise, boolean (B, F): those told time 0. ``None`` where none can be."""
        told = kwargs[self.timestep]
        if not isinstance(told, torch.Tensor) or told.ndim < 2:
            return None
        return _by_frame(told, self.size(pipe, kwargs).frames or 1) == 0

    @staticmethod
    def _fit(told: Tensor, changed: Tensor, before: LatentSize, after: LatentSize) -> Tensor:
        """Times of frames, or of their tokens, for another extent; cleaner frames keep what they were told."""
        old, new = _by_frame(told, before.frames or 1), _by_frame(changed, before.frames or 1)
        times = torch.where(old < old.max(), old.to(new.dtype), new)
        if told.ndim == 5:
            rows, columns = (
                side * large // small if side > 1 else 1
                for side, small, large in zip(
                    told.shape[-2:], (before.height, before.width), (after.height, after.width)
                )
            )
            return times[:, None, :, None, None].expand(-1, -1, -1, rows, columns)
        each = told.shape[1] // times.shape[1]
        if each > 1:
            each = each * after.height * after.width // (before.height * before.width)
        return times[..., None].expand(-1, -1, each).flatten(1)


class PackedLayout(ImageLayout):
    """Tokens of ``side`` x ``side`` latent pixels, 2x2 in most families, (B, L, C * side**2), channels outermost.

    Tokens of reference pictures follow those of the latents; they are conditions and stay as they are.
    """

    side: ClassVar[int] = 2
    """Latent pixels per side of a token."""

    @abstractmethod
    def grid(self, pipe: Pipeline, kwargs: Mapping[str, Any]) -> tuple[int, int]:
        """Rows and columns of latent tokens."""

    @override
    def size(self, pipe: Pipeline, kwargs: Mapping[str, Any]) -> LatentSize:
        """The token grid in latent pixels."""
        rows, columns = self.grid(pipe, kwargs)
        return LatentSize(self.side * rows, self.side * columns)

    @override
    def unpack(self, pipe: Pipeline, kwargs: Mapping[str, Any], packed: Any) -> Tensor:
        """Latent tokens as (B, C, H, W)."""
        rows, columns = self.grid(pipe, kwargs)
        blocks: Tensor = (
            packed[:, : rows * columns].unflatten(1, (rows, columns)).unflatten(3, (-1, self.side, self.side))
        )
        latent: Tensor = blocks.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
        return latent

    @override
    def arrange(self, latent: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H / side * W / side, C * side * side)."""
        blocks = latent.unflatten(3, (-1, self.side)).unflatten(2, (-1, self.side))
        packed: Tensor = blocks.permute(0, 2, 4, 1, 3, 5).flatten(3, 5).flatten(1, 2)
        return packed

    @override
    def pack(self, pipe: Pipeline, kwargs: Mapping[str, Any], latent: Tensor) -> Tensor:
        """Tokens of ``latent``, then the reference tokens."""
        whole: Tensor = kwargs[self.latents]
        rows, columns = self.grid(pipe, kwargs)
        return torch.cat([super().pack(pipe, kwargs, latent), whole[:, rows * columns :]], dim=1)

    @override
    def encode_output(self, pipe: Pipeline, kwargs: Mapping[str, Any], latent: Tensor) -> Tensor:
        """Tokens of ``latent``, then zeros for the reference tokens, whose outputs the pipelines drop."""
        tokens = super().encode_output(pipe, kwargs, latent)
        references = kwargs[self.latents].shape[1] - tokens.shape[1]
        return torch.nn.functional.pad(tokens, (0, 0, 0, references))


class TokenLayout(VideoLayout):
    """One token per latent pixel and frame, (B, F*H*W, C), the extent given by arguments (LTX)."""

    factor = "vae_spatial_compression_ratio"
    frame_factor = "vae_temporal_compression_ratio"
    multiple = 1

    @override
    def size(self, pipe: Pipeline, kwargs: Mapping[str, Any]) -> LatentSize:
        """From the arguments."""
        return LatentSize(kwargs["height"], kwargs["width"], kwargs["num_frames"])

    @override
    def unpack(self, pipe: Pipeline, kwargs: Mapping[str, Any], packed: Any) -> Tensor:
        """Tokens as (B, C, F, H, W)."""
        size = self.size(pipe, kwargs)
        result: Tensor = packed.transpose(1, 2).unflatten(2, (size.frames or 1, size.height, size.width))
        return result

    @override
    def arrange(self, latent: Tensor) -> Tensor:
        """Frames, rows and columns become one axis, before the channels."""
        return latent.flatten(2).transpose(1, 2)

    @override
    def positions(self, pipe: Pipeline, kwargs: Mapping[str, Any], size: LatentSize) -> dict[str, Any]:
        """Height and width; the rotary scale is physical and stays."""
        return {"height": size.height, "width": size.width}

    @override
    def refusal(self, pipe: Pipeline) -> str | None:
        """Larger patches exist in the configuration, but no released model has them."""
        config = pipe.transformer.config
        if (config.patch_size, config.patch_size_t) != (1, 1):
            return f"patches of {config.patch_size_t}x{config.patch_size}x{config.patch_size} latent pixels"
        return super().refusal(pipe)


def unknown_size(pipe: Pipeline) -> UnsupportedError:
    """The error for a call whose size only the call itself will find out."""
    return UnsupportedError(
        f"{type(pipe).__name__} determines its size during the call; pass height and width to fix it in advance"
    )


def image_pixels(pipe: Pipeline, image: Any) -> tuple[int, int]:
    """Height and width that an image-to-image pipeline gives to ``image``, or to the first of several."""
    first = image[0] if isinstance(image, (list, tuple)) else image
    height, width = pipe.image_processor.get_default_height_width(first)
    return int(height), int(width)


def _by_frame(told: Tensor, frames: int) -> Tensor:
    """(B, F) of times given for frames (B, 1, F, 1 or h, 1 or w) or tokens (B, F * L)."""
    return told[:, 0, :, 0, 0] if told.ndim == 5 else told.unflatten(1, (frames, -1))[:, :, 0]


def _extent(latent: Tensor) -> LatentSize:
    *_, height, width = latent.shape
    return LatentSize(height, width, latent.shape[2] if latent.ndim == 5 else None)


def _dtype(packed: Tensor | list[Tensor]) -> torch.dtype:
    return packed[0].dtype if isinstance(packed, list) else packed.dtype
