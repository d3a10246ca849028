"""Runs by name: the models they build on, their folders, and loading of their results."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from hasten import CheckpointError, ConfigError
from hasten.pipelines import mini
from hasten.weights import load_checked
from hasten_miniatures.checkpoints import read_average
from hasten_miniatures.provenance import has_record
from hasten_miniatures.training import Cadence, Recipe, train
from hasten_miniatures.warm_start import load_warm_start

__all__ = [
    "RUNS",
    "Entry",
    "RunOptions",
    "bundled_in",
    "load_autoencoder",
    "load_bundled",
    "load_denoiser",
    "load_text_tower",
    "load_trained",
    "load_video_autoencoder",
    "recipe",
    "run",
]


@dataclass(frozen=True)
class Entry:
    """One model that can be trained.

    Args:
        module: module of this package; its ``make_recipe(root, *, device, compiled)`` returns the recipe.
        requires: models that it builds on.
        begins_with: the one of them whose weights initialise it.
    """

    module: str
    requires: tuple[str, ...] = ()
    begins_with: str | None = None


RUNS: dict[str, Entry] = {
    "autoencoder": Entry("autoencoder"),
    "text-image": Entry("contrastive"),
    "judge": Entry("judge", ("autoencoder",)),
    "t2i-dit": Entry("t2i_dit", ("autoencoder", "text-image")),
    "t2i-unet": Entry("t2i_unet", ("autoencoder", "text-image")),
    "t2i-dit-1024": Entry("t2i_dit_1024", ("autoencoder", "text-image", "t2i-dit"), begins_with="t2i-dit"),
    "t2i-dit-4096": Entry(
        "t2i_dit_4096", ("autoencoder", "text-image", "t2i-dit-1024"), begins_with="t2i-dit-1024"
    ),
    "t2i-outlines": Entry("t2i_outlines", ("autoencoder", "text-image", "t2i-dit-1024")),
    "video-autoencoder": Entry("video_autoencoder"),
    "t2v-dit": Entry("t2v_dit", ("video-autoencoder",)),
    "t2v-unet": Entry("t2v_unet", ("autoencoder", "text-image", "t2i-unet"), begins_with="t2i-unet"),
    "var-tokenizer": Entry("var_tokenizer", ("autoencoder",)),
    "var": Entry("var", ("text-image", "var-tokenizer")),
    "infinity-tokenizer": Entry("infinity_tokenizer", ("autoencoder",)),
    "infinity": Entry("infinity", ("text-image", "infinity-tokenizer")),
}
"""Every model by name."""

_BUNDLED = {
    "autoencoder": "t2i-dit/vae",
    "text-image": "t2i-dit/text_encoder",
    "t2i-dit-1024": "t2i-dit/transformer",
    "t2i-dit-4096": "t2i-dit-4096/transformer",
    "t2i-unet": "t2i-unet/unet",
    "video-autoencoder": "t2v-dit/vae",
    "var-tokenizer": "var/vae",
    "infinity-tokenizer": "infinity/vae",
}
"""Model -> miniature that contains it, and its folder there."""


@dataclass(frozen=True)
class RunOptions:
    """Options of a run, as on the command line.

    Args:
        steps: number of steps, by default those of the recipe.
        seed: seed of this run; models that are trained first have the default seed.
        device: torch device, also for models that are trained first.
        compiled: use ``torch.compile``.
        begin_with: initial weights, by default those that the recipe names: the folder of a finished run or the name
            of a bundled model (``"mini/..."``). With weights of the same recipe, the run is a refinement.
    """

    steps: int | None = None
    seed: int = 0
    device: str = "cpu"
    compiled: bool = False
    begin_with: str | Path | None = None

    def command(self, name: str) -> str:
        """The command line that trains ``name`` with these options."""
        given = {"--steps": self.steps, "--seed": self.seed, "--device": self.device}
        flags = [f"{flag} {value}" for flag, value in given.items() if value is not None]
        flags += ["--compile"] * self.compiled
        flags += [f"--begin-with {self.begin_with}"] * (self.begin_with is not None)
        return " ".join(["hasten mini train", name, *flags])


def run(name: str, root: Path, options: RunOptions | None = None, cadence: Cadence | None = None) -> None:
    """Train ``name`` in ``root / name``.

    Models that it builds on are taken from ``root``, or else from the bundled models, or else trained first.

    Args:
        name: a key of :data:`RUNS`.
        root: folder of all runs.
        options: options of the run.
        cadence: when to save and draw previews.

    Raises:
        ConfigError: the name is unknown, or the recipe cannot be compiled.
        CheckpointError: ``options.begin_with`` contains no finished run.
    """
    options = options or RunOptions()
    if name not in RUNS:
        raise ConfigError(f"no miniature is called {name!r}; there are {', '.join(RUNS)}")
    for part in RUNS[name].requires:
        here = (root / part).is_dir()
        if not has_record(root / part) and (here or _bundled(part) is None):
            run(part, root, RunOptions(device=options.device))
    source = options.begin_with if options.begin_with is not None else _default_start(name, root)
    start = load_warm_start(source) if source is not None else None
    refine = start is not None and start.recipe == name
    chosen = recipe(
        name, root, steps=options.steps, device=options.device, compiled=options.compiled, refine=refine
    )
    train(
        chosen,
        root / name,
        seed=options.seed,
        device=options.device,
        cadence=cadence,
        command=options.command(name),
        begin_with=start,
    )


def _default_start(name: str, root: Path) -> str | Path | None:
    """The run in ``root`` whose weights initialise ``name``, or else the bundled model."""
    first = RUNS[name].begins_with
    if first is None:
        return None
    return root / first if (root / first).is_dir() else bundled_in(first)


def recipe(
    name: str,
    root: Path,
    *,
    steps: int | None = None,
    device: str = "cpu",
    compiled: bool = False,
    refine: bool = False,
) -> Recipe:
    """The recipe of ``name``, with the trained models in ``root``; ``refine`` for a run that refines a finished one.

    Raises:
        ConfigError: the recipe cannot be compiled.
    """
    chosen: Recipe = import_module(f"hasten_miniatures.{RUNS[name].module}").make_recipe(
        root, device=device, compiled=compiled
    )
    if compiled and not getattr(chosen, "compiled", False):
        raise ConfigError(f"the recipe of {name!r} cannot be compiled; leave out --compile")
    if refine:
        chosen.refine()
    if steps is not None:
        chosen.schedule = replace(chosen.schedule, steps=steps)
    return chosen


def _bundled(part: str) -> Path | None:
    """Folder of the bundled weights of a model, if there are any."""
    model, _, folder = _BUNDLED.get(part, part).partition("/")
    if f"mini/{model}" not in mini.names():
        return None
    found = mini.path(model) / folder
    return found if found.is_dir() else None


def bundled_in(part: str) -> str:
    """The bundled miniature that contains a model."""
    return f"mini/{_BUNDLED[part].split('/')[0]}"


def load_bundled(part: str, cls: Any) -> Any:
    """The bundled model as ``cls``, in single precision, frozen.

    Raises:
        CheckpointError: it is damaged or not installed.
    """
    folder = _bundled(part)
    if folder is None:
        raise CheckpointError(f"{bundled_in(part)!r}, which holds the {part}, is not installed")
    model = load_checked(lambda: cls.from_pretrained(folder), folder, "reinstall hasten")
    return model.float().eval().requires_grad_(False)


def load_trained(name: str, root: Path, model: Any) -> Any:
    """``model`` with the averaged weights of the run ``name``, frozen.

    Raises:
        CheckpointError: there is no such run.
    """
    model.load_state_dict(read_average(root / name))
    return model.eval().requires_grad_(False)


def load_autoencoder(root: Path) -> Any:
    """The autoencoder trained in ``root``, or else the bundled one, with latent shift and scale set."""
    if not (root / "autoencoder").is_dir():
        from diffusers import AutoencoderKL

        return load_bundled("autoencoder", AutoencoderKL)
    from hasten_miniatures.autoencoder import build_autoencoder, calibrate

    model = load_trained("autoencoder", root, build_autoencoder())
    calibrate(model)
    return model


def load_video_autoencoder(root: Path) -> Any:
    """The video autoencoder trained in ``root``, or else the bundled one, with latent mean and deviation set."""
    if not (root / "video-autoencoder").is_dir():
        from diffusers import AutoencoderKLWan

        return load_bundled("video-autoencoder", AutoencoderKLWan)
    from hasten_miniatures.video_autoencoder import build_video_autoencoder, calibrate

    model = load_trained("video-autoencoder", root, build_video_autoencoder())
    calibrate(model)
    return model


def load_denoiser(root: Path) -> Any:
    """The denoiser of ``mini/t2i-dit`` trained in ``root``, or else the bundled one."""
    if not (root / "t2i-dit-1024").is_dir():
        from diffusers import SD3Transformer2DModel

        return load_bundled("t2i-dit-1024", SD3Transformer2DModel)
    from hasten_miniatures.t2i_dit_1024 import build_transformer

    return load_trained("t2i-dit-1024", root, build_transformer())


def load_text_tower(root: Path) -> Any:
    """The text tower of the text-image model trained in ``root``, or else of the bundled one."""
    from transformers import CLIPTextModelWithProjection

    if not (root / "text-image").is_dir():
        return load_bundled("text-image", CLIPTextModelWithProjection)
    from hasten_miniatures.contrastive import build_clip

    clip = load_trained("text-image", root, build_clip())
    tower = CLIPTextModelWithProjection(clip.config.text_config)
    text = {key: value for key, value in clip.state_dict().items() if key.startswith("text_")}
    tower.load_state_dict(text)
    return tower.eval().requires_grad_(False)
