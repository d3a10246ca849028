"""Runs by name: what to train first, where it lies, and how to read the result back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hasten._errors import CheckpointError, ConfigError
from hasten.pipelines.mini.training import Recipe, train

__all__ = ["REQUIRES", "load_autoencoder", "load_text_tower", "load_trained", "recipe", "run"]

REQUIRES: dict[str, tuple[str, ...]] = {
    "autoencoder": (),
    "text-image": (),
    "judge": ("autoencoder",),
    "t2i-dit": ("autoencoder", "text-image"),
}
"""Model -> the models that have to be trained before it."""


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
    """Train ``name`` in ``root / name`` after everything it requires; finished parts are left as they are.

    Args:
        name: a key of :data:`REQUIRES`.
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
    if name not in REQUIRES:
        raise ConfigError(f"no miniature is called {name!r}; there are {', '.join(REQUIRES)}")
    for part in REQUIRES[name]:
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
    chosen = _recipe(name, root, device, compiled)
    if refine:
        chosen.refine()
    if steps is not None:
        chosen.schedule = replace(chosen.schedule, steps=steps)
    return chosen


def _recipe(name: str, root: Path, device: str, compiled: bool) -> Recipe:
    if name == "autoencoder":
        from hasten.pipelines.mini.autoencoder import Autoencoder

        return Autoencoder()
    if name == "text-image":
        from hasten.pipelines.mini.contrastive import Contrastive

        return Contrastive()
    vae = load_autoencoder(root).to(device)
    if name == "judge":
        from hasten.pipelines.mini.judge import JudgeRecipe

        return JudgeRecipe(vae)
    from hasten.pipelines.mini.t2i_dit import TextToImage

    return TextToImage(vae, load_text_tower(root).to(device), compiled=compiled, cache=root / name)


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
    """The trained autoencoder with its latent shift and scale set."""
    from hasten.pipelines.mini.autoencoder import build_autoencoder, calibrate

    model = load_trained("autoencoder", root, build_autoencoder())
    calibrate(model)
    return model


def load_text_tower(root: Path) -> Any:
    """The text tower of the trained text-image model, in the class the pipelines use."""
    from transformers import CLIPTextModelWithProjection

    from hasten.pipelines.mini.contrastive import build_clip

    clip = load_trained("text-image", root, build_clip())
    tower = CLIPTextModelWithProjection(clip.config.text_config)
    text = {key: value for key, value in clip.state_dict().items() if key.startswith("text_")}
    tower.load_state_dict(text)
    return tower.eval().requires_grad_(False)
