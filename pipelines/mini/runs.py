"""Runs by name: what to train first, where it lies, and how to read the result back."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from hasten._errors import CheckpointError, ConfigError
from hasten.pipelines.mini.training import Recipe, train

__all__ = ["RUNS", "Entry", "load_autoencoder", "load_text_tower", "load_trained", "recipe", "run"]


@dataclass(frozen=True)
class Entry:
    """One model that can be trained.

    Args:
        module: of this package; its ``make_recipe(root, *, device, compiled)`` gives the recipe.
        requires: models that have to be trained before it, unless the bundled ones serve.
    """

    module: str
    requires: tuple[str, ...] = ()


RUNS: dict[str, Entry] = {
    "autoencoder": Entry("autoencoder"),
    "text-image": Entry("contrastive"),
    "judge": Entry("judge", ("autoencoder",)),
    "t2i-dit": Entry("t2i_dit", ("autoencoder", "text-image")),
    "t2i-unet": Entry("t2i_unet", ("autoencoder", "text-image")),
}
"""Every model by name."""

_BUNDLED = Path(__file__).with_name("weights") / "t2i-dit"


def run(
    name: str,
    root: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    compiled: bool = False,
    begin_with: Path | None = None,
    **options: Any,
) -> None:
    """Train ``name`` in ``root / name``.

    What it builds on is taken from ``root`` where it was trained there, from the bundled models where not, and is
    trained first where neither exists.

    Args:
        name: a key of :data:`RUNS`.
        root: folder of all runs.
        steps: length of the run, if not the recipe's own.
        seed: of this run; parts that have to be trained first take their default.
        device: torch device, also of the parts.
        compiled: use ``torch.compile`` where the recipe can.
        begin_with: folder of a finished run of ``name`` to go on from, with the recipe's refinement.
        **options: of :func:`hasten.pipelines.mini.training.train`.

    Raises:
        ConfigError: for an unknown name.
    """
    if name not in RUNS:
        raise ConfigError(f"no miniature is called {name!r}; there are {', '.join(RUNS)}")
    for part in RUNS[name].requires:
        if (root / part).is_dir() or not _bundled(part).is_dir():
            run(part, root, device=device)
    flags = [f"--steps {steps}"] if steps is not None else []
    flags += [f"--seed {seed}", f"--device {device}"] + (["--compile"] if compiled else [])
    flags += [f"--begin-with {begin_with}"] if begin_with is not None else []
    refine = begin_with is not None
    chosen = recipe(name, root, steps=steps, device=device, compiled=compiled, refine=refine)
    command = " ".join(["hasten mini train", name, *flags])
    train(chosen, root / name, seed=seed, device=device, command=command, begin_with=begin_with, **options)


def recipe(
    name: str,
    root: Path,
    *,
    steps: int | None = None,
    device: str = "cpu",
    compiled: bool = False,
    refine: bool = False,
) -> Recipe:
    """The recipe of ``name`` over the trained parts in ``root``, or that of a second run on top of a first."""
    chosen: Recipe = import_module(f"hasten.pipelines.mini.{RUNS[name].module}").make_recipe(
        root, device=device, compiled=compiled
    )
    if refine:
        chosen.refine()
    if steps is not None:
        chosen.schedule = replace(chosen.schedule, steps=steps)
    return chosen


def _bundled(part: str) -> Path:
    """Where the packaged weights of a part lie, whether or not there are any."""
    return _BUNDLED / {"autoencoder": "vae", "text-image": "text_encoder"}.get(part, part)


def load_trained(name: str, root: Path, model: Any) -> Any:
    """``model`` with the averaged weights of the run ``name``, frozen.

    Raises:
        CheckpointError: if there is no such run yet.
    """
    path = root / name / "checkpoint.pt"
    if not path.exists():
        raise CheckpointError(f"no checkpoint at {path}; run `hasten mini train {name}` first")
    model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu")["average"])
    return model.eval().requires_grad_(False)


def load_autoencoder(root: Path) -> Any:
    """The autoencoder trained in ``root``, else the bundled one, with its latent shift and scale set."""
    if not (root / "autoencoder").is_dir():
        from diffusers import AutoencoderKL

        model = AutoencoderKL.from_pretrained(_bundled("autoencoder"), torch_dtype=torch.float32)
        return model.eval().requires_grad_(False)
    from hasten.pipelines.mini.autoencoder import build_autoencoder, calibrate

    model = load_trained("autoencoder", root, build_autoencoder())
    calibrate(model)
    return model


def load_text_tower(root: Path) -> Any:
    """The text tower of the text-image model trained in ``root``, else the bundled one."""
    from transformers import CLIPTextModelWithProjection

    if not (root / "text-image").is_dir():
        bundled = CLIPTextModelWithProjection.from_pretrained(_bundled("text-image"), dtype=torch.float32)
        return bundled.eval().requires_grad_(False)
    from hasten.pipelines.mini.contrastive import build_clip

    clip = load_trained("text-image", root, build_clip())
    tower = CLIPTextModelWithProjection(clip.config.text_config)
    text = {key: value for key, value in clip.state_dict().items() if key.startswith("text_")}
    tower.load_state_dict(text)
    return tower.eval().requires_grad_(False)
