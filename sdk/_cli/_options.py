"""Options that several commands share, and how they become a configuration, prompts and call arguments."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten._errors import ConfigError
from hasten._plugins import host
from hasten._prompts import read_prompts

if TYPE_CHECKING:
    from hasten._config import Config
    from hasten._placement import Placement

__all__ = [
    "ConfigFile",
    "Device",
    "Dtype",
    "Enable",
    "Frames",
    "Guidance",
    "Height",
    "Json",
    "ModelName",
    "NumPrompts",
    "Preset",
    "Prompt",
    "PromptsFile",
    "Seed",
    "Set",
    "Steps",
    "Width",
    "call_arguments",
    "choose_model",
    "choose_place",
    "choose_prompts",
    "choose_seed",
    "configuration",
    "technique_names",
]


def technique_names() -> list[str]:
    """What a shell completes to after ``--enable``."""
    return sorted(host().registry.techniques)


def _model_names() -> list[str]:
    return sorted(host().registry.models)


ModelName = Annotated[
    str | None,
    typer.Argument(
        autocompletion=_model_names,
        help="A bundled miniature ([bold]mini/t2i-dit[/]), a local diffusers folder or a hub id.",
    ),
]
Enable = Annotated[
    list[str] | None,
    typer.Option(
        "--enable",
        "-e",
        metavar="NAME",
        autocompletion=technique_names,
        help="Enable a technique; repeat for several, outermost first.",
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        autocompletion=lambda: list(_presets()),
        help="Preset for the model: faithful, balanced or fast; --enable and --set override it.",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", "-s", metavar="NAME.OPTION=VALUE", help="Set one option; overrides the configuration file."
    ),
]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="Configuration file (YAML, TOML or JSON).")
]
Prompt = Annotated[
    list[str] | None, typer.Option("--prompt", "-p", metavar="TEXT", help="A prompt; repeat for several.")
]
PromptsFile = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        help="File with prompts: text (one prompt per line), JSON Lines, JSON, CSV or TSV.",
    ),
]
NumPrompts = Annotated[int | None, typer.Option("--num-prompts", min=1, help="Maximum number of prompts.")]
Seed = Annotated[
    int | None, typer.Option("--seed", help="Seed of the first prompt; prompt i uses seed + i. (default: 0)")
]
Steps = Annotated[int | None, typer.Option("--steps", min=1, help="Denoising steps.")]
Frames = Annotated[int | None, typer.Option("--frames", min=1, help="Number of video frames.")]
Height = Annotated[int | None, typer.Option("--height", min=1, help="Height in pixels.")]
Width = Annotated[int | None, typer.Option("--width", min=1, help="Width in pixels.")]
Guidance = Annotated[float | None, typer.Option("--guidance-scale", help="Classifier-free guidance scale.")]
Device = Annotated[
    str | None,
    typer.Option("--device", help="Torch device: cpu, cuda, cuda:1, mps. (default: a GPU if there is one)"),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype", help="float32, bfloat16 or float16. (default: half precision on a GPU, else float32)"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def _presets() -> tuple[str, ...]:
    from hasten._config import PRESETS

    return PRESETS


def configuration(
    file: Path | None, enable: list[str] | None, sets: list[str] | None, preset: str | None = None
) -> Config:
    """The configuration file with the command line laid over it.

    Raises:
        ConfigError: with the dotted path, and the line for YAML.
    """
    from hasten._config import apply_overrides

    return apply_overrides(file, enable=enable or [], sets=sets or [], preset=preset)


def choose_model(name: str | None, config: Config) -> str:
    """The model named on the command line, else the file's.

    Raises:
        ConfigError: if neither names one.
    """
    if name is None and config.model is None:
        raise ConfigError(
            "no model given: name one (for example mini/t2i-dit) or set `model:` in the configuration file"
        )
    return name if name is not None else str(config.model)


def choose_place(
    config: Config | None, device: str | None, dtype: str | None, *, default_dtype: str | None = None
) -> Placement:
    """Device and number format of the command line, else of the file, else what suits this machine.

    Under a launcher each process takes a GPU of its own.

    Args:
        config: the file, for commands that read one.
        device: of the command line.
        dtype: of the command line.
        default_dtype: what nobody chose, instead of half precision on a GPU: training needs ``"float32"``.

    Raises:
        ConfigError: there is no such device or format.
    """
    from hasten._placement import placement
    from hasten._processes import Processes

    if config is not None:
        device, dtype = device or config.device, dtype or config.dtype
    return placement(Processes.from_environment().device(device), dtype or default_dtype)


def choose_seed(config: Config | None, seed: int | None) -> int:
    """The seed of the command line, else the file's, else 0.

    Raises:
        ConfigError: it is out of range.
    """
    if seed is None:
        seed = (config and config.seed) or 0
    if (
        not 0 <= seed < 2**63
    ):  # what both torch and numpy take, with room for prompts and controls to count up
        raise ConfigError(f"seed {seed} is out of range: choose one from 0 to {2**63 - 1}")
    return seed


def choose_prompts(
    model: str, config: Config, prompt: list[str] | None, file: Path | None, limit: int | None, seed: int
) -> tuple[str, ...]:
    """Prompts from ``--prompt`` and ``--prompts``, else the configuration, else a miniature's own data set.

    Raises:
        ConfigError: if there are none.
    """
    limit = limit if limit is not None else config.num_prompts
    found: tuple[str, ...] = tuple(prompt or ())
    if file is not None:
        found += read_prompts(file)
    if not found:
        found = _configured_prompts(config)
    known = host().registry.models.get(model)
    if not found and known is not None:
        found = tuple(known.captions.prompts(limit or 4, seed))
    if not found:
        raise ConfigError("no prompt given: use --prompt TEXT or --prompts FILE")
    return found[:limit]


def _configured_prompts(config: Config) -> tuple[str, ...]:
    if config.prompts is None or isinstance(config.prompts, tuple):
        return config.prompts or ()
    return read_prompts(config.prompts)


def call_arguments(
    model: str,
    config: Config,
    *,
    steps: int | None = None,
    height: int | None = None,
    width: int | None = None,
    frames: int | None = None,
    guidance_scale: float | None = None,
) -> dict[str, Any]:
    """Arguments of the pipeline call: a miniature's recommended ones, then the file's, then the command line's.

    Raises:
        ConfigError: a number is not finite.
    """
    if guidance_scale is not None and not math.isfinite(guidance_scale):
        raise ConfigError(f"--guidance-scale {guidance_scale} is not a finite number")
    known = host().registry.models.get(model)
    given = {
        "num_inference_steps": steps or config.steps,
        "height": height or config.height,
        "width": width or config.width,
        "num_frames": frames or config.frames,
        "guidance_scale": config.guidance_scale if guidance_scale is None else guidance_scale,
    }
    own = {} if known is None else dict(known.call)
    return own | {name: value for name, value in given.items() if value is not None}
