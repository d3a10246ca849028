"""What commands are made of: options shared by all, loading, generation, processes. For plugins that add commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasten._lazy import lazy_names

if TYPE_CHECKING:
    from hasten._cli._loading import load_quietly
    from hasten._cli._options import (
        ConfigFile,
        Device,
        Dtype,
        Enable,
        Frames,
        Guidance,
        Height,
        Json,
        ModelName,
        NumPrompts,
        Prompt,
        PromptsFile,
        Seed,
        Set,
        Steps,
        Width,
        call_arguments,
        choose_model,
        choose_place,
        choose_prompts,
        choose_seed,
        configuration,
    )
    from hasten._cli._outputs import hold_file, hold_folder
    from hasten._cli._progress import showing_progress
    from hasten._config import Config
    from hasten._conflicts import TESTED
    from hasten._console import Console
    from hasten._generation import Job, Sample, generate, prepare_folder
    from hasten._grid import comparison_grid
    from hasten._load import find_model, load, load_saved, model_folder
    from hasten._lock import owned
    from hasten._machine import describe_machine
    from hasten._placement import Placement
    from hasten._plugins import host
    from hasten._processes import PATIENCE, Processes, wait_for
    from hasten._shown import printable

__all__ = [
    "PATIENCE",
    "TESTED",
    "Config",
    "ConfigFile",
    "Console",
    "Device",
    "Dtype",
    "Enable",
    "Frames",
    "Guidance",
    "Height",
    "Job",
    "Json",
    "ModelName",
    "NumPrompts",
    "Placement",
    "Processes",
    "Prompt",
    "PromptsFile",
    "Sample",
    "Seed",
    "Set",
    "Steps",
    "Width",
    "call_arguments",
    "choose_model",
    "choose_place",
    "choose_prompts",
    "choose_seed",
    "comparison_grid",
    "configuration",
    "describe_machine",
    "find_model",
    "generate",
    "hold_file",
    "hold_folder",
    "host",
    "load",
    "load_quietly",
    "load_saved",
    "model_folder",
    "owned",
    "prepare_folder",
    "printable",
    "showing_progress",
    "wait_for",
]

_HOMES: dict[str, tuple[str, ...]] = {
    "hasten._cli._options": (
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
    ),
    "hasten._cli._progress": ("showing_progress",),
    "hasten._placement": ("Placement",),
    "hasten._cli._loading": ("load_quietly",),
    "hasten._cli._outputs": (
        "hold_file",
        "hold_folder",
    ),
    "hasten._config": ("Config",),
    "hasten._console": ("Console",),
    "hasten._shown": ("printable",),
    "hasten._conflicts": ("TESTED",),
    "hasten._generation": (
        "Job",
        "Sample",
        "generate",
        "prepare_folder",
    ),
    "hasten._grid": ("comparison_grid",),
    "hasten._load": (
        "find_model",
        "load",
        "load_saved",
        "model_folder",
    ),
    "hasten._lock": ("owned",),
    "hasten._machine": ("describe_machine",),
    "hasten._plugins": ("host",),
    "hasten._processes": (
        "PATIENCE",
        "Processes",
        "wait_for",
    ),
}

if not TYPE_CHECKING:  # a type checker would take any name for one of these
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
