"""Prepared data: latents, conditions and router embeddings of captioned pictures."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel
from torch import Tensor

from hasten.extend import CheckpointError, ConfigError, LatentSize, Target, UnsupportedError
from hasten.files import (
    describe_unread,
    list_folder,
    read_json,
    read_json_lines,
    read_rgb,
    read_text,
    seal,
    unseal,
    write_atomically,
)
from hasten.plugins.aptp.encoder import Encoder, make_encoder
from hasten.plugins.aptp.make.conditioner import Conditioner
from hasten.plugins.aptp.make.options import PrepareOptions
from hasten.weights import check_fit, read_sealed_tensors, require, save_sealed_tensors

if TYPE_CHECKING:
    from hasten.extend import Pipeline

__all__ = ["Batch", "Prepared", "captioned_pictures", "prepare", "prepare_pipeline", "scene_pictures"]

_FILE, _ABOUT = "data.safetensors", "data.json"
_CHUNK = 16
Picture = tuple[str, Tensor]
"""A caption and its picture, (3, H, W) in [-1, 1]."""


@dataclass(frozen=True)
class Batch:
    """Rows of the prepared data: latents (B, C, h, w), conditions, router embeddings (B, D)."""

    latents: Tensor
    conditions: Mapping[str, Tensor]
    embeddings: Tensor


@dataclass(frozen=True)
class Prepared:
    """What :func:`prepare` wrote.

    Args:
        latents: scaled as the denoiser expects them (N, C, h, w), float16.
        conditions: denoiser arguments by name, one row for each caption.
        empty: the same for the empty caption, one row.
        embeddings: of the router's encoder (N, D), float32.
        captions: of the pictures.
        about: model and router encoder.
    """

    latents: Tensor
    conditions: Mapping[str, Tensor]
    empty: Mapping[str, Tensor]
    embeddings: Tensor
    captions: tuple[str, ...]
    about: Mapping[str, Any]

    @property
    def size(self) -> LatentSize:
        """Extent of the latents."""
        return LatentSize(self.latents.shape[2], self.latents.shape[3])

    def rows(self, index: Tensor, dropped: Tensor | None = None) -> Batch:
        """Rows in float32 by number (B,). Where ``dropped`` (B,) is true, the caption is empty."""
        conditions = {}
        for name, value in self.conditions.items():
            chosen = value[index]
            if dropped is not None:
                mask = dropped.view(-1, *[1] * (chosen.ndim - 1))
                chosen = torch.where(mask, self.empty[name].expand_as(chosen), chosen)
            conditions[name] = chosen.float() if chosen.is_floating_point() else chosen
        return Batch(self.latents[index].float(), conditions, self.embeddings[index].float())

    def batch(self, count: int, generator: torch.Generator, drop: float = 0.0) -> Batch:
        """``count`` random rows; each has an empty caption with probability ``drop``."""
        index = torch.randint(len(self.latents), (count,), generator=generator)
        return self.rows(index, torch.rand(count, generator=generator) < drop)

    @classmethod
    def load(cls, folder: Path) -> Prepared:
        """Read what ``prepare`` wrote.

        Raises:
            CheckpointError: it does not exist, is incomplete or damaged.
        """
        if not (folder / _ABOUT).exists() or not (folder / _FILE).exists():
            raise CheckpointError(f"no prepared data in {folder}; run `hasten aptp prepare` first")
        remedy = "run `hasten aptp prepare` again"
        about = unseal(read_json(folder / _ABOUT, "what was prepared", remedy), folder / _ABOUT, remedy)
        noted, tensors = read_sealed_tensors(folder / _FILE, _Noted, remedy)
        if about.pop("made", None) != noted.made:
            raise CheckpointError(f"{folder / _FILE} does not match {_ABOUT}; {remedy}")
        captions = about.pop("captions", None)
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise CheckpointError(f"{folder / _ABOUT}: captions is not a list of texts; {remedy}")
        place = folder / _FILE
        latents, embeddings = (
            require(tensors, name, "prepared data", ndim=ndim, place=place)
            for name, ndim in (("latents", 4), ("embeddings", 2))
        )
        conditions, count = _below(tensors, "condition."), len(captions)
        wanted = {"latents": _like(latents.float(), count), "embeddings": _like(embeddings.float(), count)}
        wanted |= {f"condition.{name}": _like(value, count) for name, value in conditions.items()}
        wanted |= {f"empty.{name}": _like(value, 1) for name, value in conditions.items()}
        check_fit(wanted, tensors, f"its {count} captions", place, remedy)
        return cls(latents, conditions, _below(tensors, "empty."), embeddings, tuple(captions), about)


class _Noted(BaseModel):
    made: str | None = None
    """Identifier of one call of :func:`prepare`, equal in both files."""


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _like(rows: Tensor, count: int) -> Tensor:
    """A tensor of ``count`` rows like ``rows``, on the meta device."""
    return torch.empty((count, *rows.shape[1:]), dtype=rows.dtype, device="meta")


def prepare_pipeline(
    pipe: Pipeline, name: str, options: PrepareOptions, folder: Path
) -> tuple[Prepared, tuple[int, int]]:
    """Encode captioned pictures, or scenes of the miniatures' data set, for a pipeline.

    Args:
        pipe: the pipeline.
        name: its name, for the bundle.
        options: pictures, size and router encoder.
        folder: where to write.

    Returns:
        The data, and height and width of the pictures in pixels.

    Raises:
        ConfigError: there are no pictures, or one has no caption.
        UnsupportedError: the family, the autoencoder or the router encoder is not supported.
    """
    target = Target.of(pipe)
    call = target.call_arguments(height=options.height, width=options.width)
    size = target.layout.call_size(pipe, call)
    height, width = target.layout.pixels(pipe, size)
    if options.data is None:
        pictures = scene_pictures(options.count, height)
    else:
        pictures = captioned_pictures(options.data, height, width)
    kind = "pipeline" if options.encoder.startswith("text_encoder") else "sentence"
    about = {"model": name, "router_encoder": kind, "router_model": options.encoder}
    encoder = make_encoder(kind, options.encoder, pipe)
    return prepare(Conditioner.of(target, size), encoder, pictures, folder, about), (height, width)


@torch.no_grad()
def prepare(
    conditioner: Conditioner,
    encoder: Encoder,
    pictures: Iterable[Picture],
    folder: Path,
    about: Mapping[str, Any],
) -> Prepared:
    """Encode pictures and captions and write them, complete or not at all.

    Raises:
        ConfigError: there are no pictures.
        UnsupportedError: the autoencoder is not an ``AutoencoderKL``.
    """
    latents, conditions, embeddings, captions = [], [], [], []
    rest = iter(pictures)
    while chunk := list(itertools.islice(rest, _CHUNK)):
        texts = [text for text, _ in chunk]
        latents.append(_encode(conditioner.target.pipe, torch.stack([image for _, image in chunk])).half())
        conditions.append(conditioner.conditions(texts))
        embeddings += [encoder.encode(text) for text in texts]
        captions += texts
    if not captions:
        raise ConfigError("no captioned pictures to prepare")
    tensors = {"latents": torch.cat(latents), "embeddings": torch.stack(embeddings)}
    for name in conditions[0]:
        tensors[f"condition.{name}"] = torch.cat([part[name] for part in conditions])
    tensors |= {f"empty.{name}": value for name, value in conditioner.conditions([""]).items()}
    packed = {k: (v.half() if v.is_floating_point() and k != "embeddings" else v) for k, v in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    made = uuid.uuid4().hex
    save_sealed_tensors(folder / _FILE, packed, {"made": made})
    write_atomically(folder / _ABOUT, seal({**about, "captions": captions, "made": made}))
    return Prepared.load(folder)


def scene_pictures(count: int, pixels: int, seed: int = 7) -> Iterator[Picture]:
    """Training scenes of the miniatures' data set."""
    from hasten.pipelines.mini.render import render_scenes
    from hasten.pipelines.mini.scenes import sample_scene

    for index in range(count):
        scene = sample_scene(seed, index)
        yield scene.caption(), render_scenes([scene], seed, index, pixels)[0]


def captioned_pictures(folder: Path, height: int, width: int) -> Iterator[Picture]:
    """Pictures of a folder and their captions, which are in ``NAME.txt`` beside a picture or in ``metadata.jsonl``.

    Raises:
        ConfigError: the folder has no pictures, or a picture has no caption.
    """
    if not folder.is_dir():
        raise ConfigError(f"data folder {folder} does not exist")
    listing = list_folder(folder, deep=False)
    files = [folder / name for name in listing.pictures]
    if not files:
        left = f" (not read: {describe_unread(listing.unread)})" if listing.unread else ""
        raise ConfigError(f"data folder {folder} has no pictures{left}")
    table = _metadata(folder)
    captions = {file: table.get(file.name) or _caption_beside(file) for file in files}
    missing = [file.name for file, caption in captions.items() if not caption]
    if missing:
        raise ConfigError(
            f"data folder {folder}: {len(missing)} of {len(files)} pictures have no caption, first {missing[0]}; "
            f"put it into {Path(missing[0]).stem}.txt, or into metadata.jsonl as "
            f'{{"file_name": "{missing[0]}", "text": "..."}}'
        )
    for file in files:
        yield str(captions[file]), _picture(file, height, width)


def _metadata(folder: Path) -> dict[str, str]:
    file = folder / "metadata.jsonl"
    if not file.is_file():
        return {}
    table = {}
    for line, fields in read_json_lines(file, "metadata"):
        name, text = fields.get("file_name"), fields.get("text")
        if not isinstance(name, str) or not isinstance(text, str):
            raise ConfigError(
                f'{file}:{line}: expected {{"file_name": "...", "text": "..."}}, got {json.dumps(fields)[:120]}'
            )
        table[name] = text.strip()
    return table


def _caption_beside(file: Path) -> str | None:
    text = file.with_suffix(".txt")
    return read_text(text, "caption").strip() or None if text.is_file() else None


def _picture(file: Path, height: int, width: int) -> Tensor:
    import numpy as np
    from PIL import Image, ImageOps

    fitted = ImageOps.fit(read_rgb(file, str(file)), (width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 127.5 - 1


def _encode(pipe: Any, images: Tensor) -> Tensor:
    """Latents (B, C, h, w), float32 on the CPU, of pictures (B, 3, H, W) in [-1, 1]."""
    vae: Any = getattr(pipe, "vae", None)
    if type(vae).__name__ != "AutoencoderKL":
        raise UnsupportedError(
            f"pictures are encoded with an AutoencoderKL, and this pipeline has a {type(vae).__name__}"
        )
    like = next(vae.parameters())
    latents: Tensor = vae.encode(images.to(like.device, like.dtype)).latent_dist.mode()
    # The Stable Diffusion and PixArt pipelines use a scale but no shift.
    shifted = not hasattr(pipe.scheduler, "alphas_cumprod")
    shift = (vae.config.shift_factor or 0.0) if shifted else 0.0
    scaled: Tensor = (latents - shift) * vae.config.scaling_factor
    return scaled.float().cpu()
