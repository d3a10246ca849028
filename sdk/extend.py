"""The public door for authors of techniques and adapters. Everything `hasten`'s own techniques use is here.

    from hasten.extend import Access, Claim, Technique, TechniqueConfig, hookimpl

``docs/plugins.md`` shows how to write a plugin; :mod:`hasten.testing` checks one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hasten._lazy import lazy_names

if TYPE_CHECKING:
    from hasten._adapters.base import (
        Adapter,
        Guidance,
        LatentLayout,
        LatentSize,
        Moments,
        Prediction,
        ScaleSchedule,
    )
    from hasten._adapters.decoders import (
        CausalDecoder,
        ChunkedDecoder,
        FrameDecoder,
        PictureDecoder,
        TiledDecoder,
    )
    from hasten._adapters.frames import (
        FrameAxis,
        FrameLayer,
        FrameMixing,
        LayerKind,
        Rotary,
        attention_names,
        frame_layers,
        self_attentions,
        separable,
    )
    from hasten._adapters.kv_cache import KVCache
    from hasten._adapters.layouts import (
        ConditionedVideoLayout,
        ImageLayout,
        PackedLayout,
        TokenLayout,
        VideoLayout,
        image_pixels,
        resize_clean,
        unknown_size,
    )
    from hasten._adapters.paths import FlowPath, Path, VariancePreservingPath
    from hasten._adapters.scan import ScannedUnits, UNetUnits
    from hasten._adapters.skips import SkipJoint, SkipResnet, SkipTensor, SkipTransformer2D
    from hasten._adapters.tokens import AttentionTokens, JointTokens, TokenGrid, UNetTokens
    from hasten._adapters.units import (
        BlockUnit,
        Cut,
        Grain,
        PrunableUnits,
        Structure,
        UnitGroup,
    )
    from hasten._attention import AttentionCall, Proceed, attention_layers, check_layers
    from hasten._claims import Access, Claim
    from hasten._cost import StepCost, branches, call_size, planned_steps
    from hasten._denoiser import DenoiserCall, parameter_names, unwrapped
    from hasten._errors import (
        CheckpointError,
        ConfigError,
        ConflictError,
        HastenError,
        NumericalError,
        PluginError,
        RankError,
        UnsupportedError,
        suggestion,
    )
    from hasten._hookspecs import hookimpl
    from hasten._journal import OwnedJournal
    from hasten._models import Captions, Model, Split, read_settings
    from hasten._module_state import ModuleState
    from hasten._plan import Plan
    from hasten._ranks import Ranks
    from hasten._recorder import Stopwatch
    from hasten._report import Report, StepRecord
    from hasten._run import Run, RunCall
    from hasten._seams import Seams, submodule
    from hasten._step_caches import step_caches
    from hasten._subclass import stock_class
    from hasten._swap import kept, swapped
    from hasten._target import Target
    from hasten._technique import Finding, Forecast, Sameness, StepForecast, Technique, TechniqueConfig
    from hasten._timesteps import by_step, dynamic_shift, levels_of, nothing_to_run, planned_levels
    from hasten._tunable import Between, Choices, Tunable, dial_of, tunable_options
    from hasten.schedules.noise import NoiseLevel

__all__ = [
    "Access",
    "Adapter",
    "AttentionCall",
    "AttentionTokens",
    "Between",
    "BlockUnit",
    "Captions",
    "CausalDecoder",
    "CheckpointError",
    "Choices",
    "ChunkedDecoder",
    "Claim",
    "ConditionedVideoLayout",
    "ConfigError",
    "ConflictError",
    "Cut",
    "DenoiserCall",
    "Finding",
    "FlowPath",
    "Forecast",
    "FrameAxis",
    "FrameDecoder",
    "FrameLayer",
    "FrameMixing",
    "Grain",
    "Guidance",
    "HastenError",
    "ImageLayout",
    "JointTokens",
    "KVCache",
    "LatentLayout",
    "LatentSize",
    "LayerKind",
    "Model",
    "ModuleState",
    "Moments",
    "NoiseLevel",
    "NumericalError",
    "OwnedJournal",
    "PackedLayout",
    "Path",
    "PictureDecoder",
    "Plan",
    "PluginError",
    "Prediction",
    "Proceed",
    "PrunableUnits",
    "RankError",
    "Ranks",
    "Report",
    "Rotary",
    "Run",
    "RunCall",
    "Sameness",
    "ScaleSchedule",
    "ScannedUnits",
    "Seams",
    "SkipJoint",
    "SkipResnet",
    "SkipTensor",
    "SkipTransformer2D",
    "Split",
    "StepCost",
    "StepForecast",
    "StepRecord",
    "Stopwatch",
    "Structure",
    "Target",
    "Technique",
    "TechniqueConfig",
    "TiledDecoder",
    "TokenGrid",
    "TokenLayout",
    "Tunable",
    "UNetTokens",
    "UNetUnits",
    "UnitGroup",
    "UnsupportedError",
    "VariancePreservingPath",
    "VideoLayout",
    "attention_layers",
    "attention_names",
    "branches",
    "by_step",
    "call_size",
    "check_layers",
    "dial_of",
    "dynamic_shift",
    "frame_layers",
    "hookimpl",
    "image_pixels",
    "kept",
    "levels_of",
    "nothing_to_run",
    "parameter_names",
    "planned_levels",
    "planned_steps",
    "read_settings",
    "resize_clean",
    "self_attentions",
    "separable",
    "step_caches",
    "stock_class",
    "submodule",
    "suggestion",
    "swapped",
    "tunable_options",
    "unknown_size",
    "unwrapped",
]

_HOMES: dict[str, tuple[str, ...]] = {
    "hasten._errors": (
        "CheckpointError",
        "ConfigError",
        "ConflictError",
        "HastenError",
        "NumericalError",
        "PluginError",
        "RankError",
        "UnsupportedError",
        "suggestion",
    ),
    "hasten._hookspecs": ("hookimpl",),
    "hasten._technique": (
        "Finding",
        "Forecast",
        "Sameness",
        "StepForecast",
        "Technique",
        "TechniqueConfig",
    ),
    "hasten._tunable": (
        "Between",
        "Choices",
        "Tunable",
        "dial_of",
        "tunable_options",
    ),
    "hasten._claims": (
        "Access",
        "Claim",
    ),
    "hasten._plan": ("Plan",),
    "hasten._report": (
        "Report",
        "StepRecord",
    ),
    "hasten._target": ("Target",),
    "hasten._seams": (
        "Seams",
        "submodule",
    ),
    "hasten._journal": ("OwnedJournal",),
    "hasten._run": (
        "Run",
        "RunCall",
    ),
    "hasten._denoiser": (
        "DenoiserCall",
        "parameter_names",
        "unwrapped",
    ),
    "hasten._attention": (
        "AttentionCall",
        "Proceed",
        "attention_layers",
        "check_layers",
    ),
    "hasten._ranks": ("Ranks",),
    "hasten._recorder": ("Stopwatch",),
    "hasten._module_state": ("ModuleState",),
    "hasten._step_caches": ("step_caches",),
    "hasten._subclass": ("stock_class",),
    "hasten._swap": ("kept", "swapped"),
    "hasten._cost": (
        "StepCost",
        "branches",
        "call_size",
        "planned_steps",
    ),
    "hasten._timesteps": (
        "by_step",
        "dynamic_shift",
        "levels_of",
        "nothing_to_run",
        "planned_levels",
    ),
    "hasten.schedules.noise": ("NoiseLevel",),
    "hasten._adapters.base": (
        "Adapter",
        "Guidance",
        "LatentLayout",
        "LatentSize",
        "Moments",
        "Prediction",
        "ScaleSchedule",
    ),
    "hasten._adapters.kv_cache": ("KVCache",),
    "hasten._adapters.layouts": (
        "ConditionedVideoLayout",
        "ImageLayout",
        "PackedLayout",
        "TokenLayout",
        "VideoLayout",
        "image_pixels",
        "resize_clean",
        "unknown_size",
    ),
    "hasten._adapters.paths": (
        "FlowPath",
        "Path",
        "VariancePreservingPath",
    ),
    "hasten._adapters.tokens": (
        "AttentionTokens",
        "JointTokens",
        "TokenGrid",
        "UNetTokens",
    ),
    "hasten._adapters.frames": (
        "FrameAxis",
        "FrameLayer",
        "FrameMixing",
        "LayerKind",
        "Rotary",
        "attention_names",
        "frame_layers",
        "self_attentions",
        "separable",
    ),
    "hasten._adapters.decoders": (
        "CausalDecoder",
        "ChunkedDecoder",
        "FrameDecoder",
        "PictureDecoder",
        "TiledDecoder",
    ),
    "hasten._adapters.units": (
        "BlockUnit",
        "Cut",
        "Grain",
        "PrunableUnits",
        "Structure",
        "UnitGroup",
    ),
    "hasten._adapters.skips": (
        "SkipJoint",
        "SkipResnet",
        "SkipTensor",
        "SkipTransformer2D",
    ),
    "hasten._adapters.scan": (
        "ScannedUnits",
        "UNetUnits",
    ),
    "hasten._models": (
        "Captions",
        "Model",
        "Split",
        "read_settings",
    ),
}

if not TYPE_CHECKING:  # a type checker would take any name for one of these
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
