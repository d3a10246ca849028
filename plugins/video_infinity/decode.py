"""Decoding of the latents of a divided run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from hasten.extend import FrameDecoder, Pipeline, RunCall
from hasten.plugins.video_infinity.session import Session

__all__ = ["as_pixels", "decode_whole", "unpacked"]


def unpacked(
    pipe: Pipeline, session: Session, latents: Tensor, arguments: Mapping[str, Any], frames: int
) -> Tensor:
    """Latents in the layout of the pipeline as (B, C, F, H, W)."""
    decoder = session.target.capability(FrameDecoder)
    size = session.target.layout.call_size(pipe, arguments)
    return decoder.unpack(pipe, latents, (frames, size.height, size.width))


@torch.no_grad()
def decode_whole(call: RunCall, session: Session, latents: Tensor, output_type: str) -> Any:
    """The video as the pipeline would return it for ``output_type``."""
    decoder = session.target.capability(FrameDecoder)
    frames = session.frames * session.mixing.patch(call.pipe)
    whole = unpacked(call.pipe, session, latents, call.arguments, frames)
    video = torch.cat(list(decoder.frames(call.pipe, whole)), 2)
    return call.pipe.video_processor.postprocess_video(video.float(), output_type=output_type)


def as_pixels(pieces: Iterator[Tensor]) -> Iterator[Tensor]:
    """Frames of the first sample as bytes, (f, H, W, 3) on the CPU, piece by piece."""
    for piece in pieces:
        levels = (piece[0].float().clamp(-1.0, 1.0) + 1.0).mul(127.5).round()
        yield levels.to(torch.uint8).permute(1, 2, 3, 0).cpu()
