"""Options that ``compare`` and ``eval`` share, and how they become metrics and margins."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten.extend import ConfigError, HastenError, suggestion
from hasten.files import parse_yaml

if TYPE_CHECKING:
    from hasten.eval.compare.document import Evaluation
    from hasten.eval.compare.knee import Ladder
    from hasten.eval.metric import Metric

__all__ = [
    "BatchSize",
    "Configs",
    "FewerSteps",
    "Gates",
    "Knee",
    "LadderSteps",
    "Level",
    "Margins",
    "MetricDevice",
    "MetricOption",
    "Metrics",
    "Reference",
    "ReferenceCount",
    "SkipBad",
    "Sweep",
    "Workers",
    "build_metrics",
    "default_metrics",
    "ladder_of",
    "make_metric",
    "metric_names",
    "parse_margins",
    "require_references",
]

Metrics = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        "-m",
        metavar="NAME,NAME",
        help="Metrics to compute. (default: all that need no download)",
    ),
]
MetricOption = Annotated[
    list[str] | None,
    typer.Option(
        "--metric-option", metavar="NAME.OPTION=VALUE", help="For example clip_score.network=./clip-l14."
    ),
]
MetricDevice = Annotated[
    str | None,
    typer.Option(
        "--device",
        help="Torch device of the metrics' networks: cpu, cuda, cuda:1, mps. (default: a GPU if there is one)",
    ),
]
Reference = Annotated[
    Path | None,
    typer.Option(help="Real pictures (folder, zip, npz, npy) or statistics (npz) for FID, KID and CMMD."),
]
ReferenceCount = Annotated[
    int | None,
    typer.Option(
        min=2,
        metavar="N",
        help="Number of pictures in another tool's statistics; confirms that the same network computed them.",
    ),
]
Workers = Annotated[int, typer.Option(min=0, help="Decoding processes.")]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Skip pictures that can't be used.")]
Configs = Annotated[
    list[Path] | None,
    typer.Option("--config", "-c", help="A configuration file; repeat to compare several."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts per pipeline call.")]
FewerSteps = Annotated[
    list[str] | None,
    typer.Option(metavar="N|NAME=N", help="Steps of the equal-time control. (default: from a measurement)"),
]
Knee = Annotated[
    bool | None,
    typer.Option(
        "--knee/--no-knee",
        help="Find the fewest plain steps within the margin, and compare there too. (default: if there is a margin)",
    ),
]
LadderSteps = Annotated[
    str | None,
    typer.Option(
        "--ladder",
        metavar="N,N",
        help="Step counts to try for the knee. (default: each 1/sqrt(2) of the previous one)",
    ),
]
Sweep = Annotated[
    bool,
    typer.Option(
        "--sweep",
        help="Also draw quality over time: plain sampling over steps and solvers, techniques over their dials.",
    ),
]
Margins = Annotated[
    list[str] | None,
    typer.Option(metavar="METRIC=VALUE", help="Largest tolerated loss, METRIC=VALUE; repeatable."),
]
Gates = Annotated[
    list[str] | None,
    typer.Option(metavar="METRIC>=VALUE", help="Exit with code 3 unless this condition holds; repeatable."),
]
Level = Annotated[float, typer.Option(min=0.5, max=0.999, help="Confidence level of the intervals.")]

#: Metrics without a network, which suit any pictures.
_DEFAULTS = ("psnr", "ssim")

#: What people call a metric -> the name it has here.
_ALIASES = {"clip": "clip_score", "blip": "blip_t_classdiffusion", "blip2": "blip2_t"}

#: Metrics that would otherwise fetch a published network: the user names it, or its folder.
_NEEDS_NETWORK = {
    "clip_score": "openai/clip-vit-large-patch14",
    "clip_i": "openai/clip-vit-large-patch14",
    "cmmd": "openai/clip-vit-large-patch14-336",
    "mmd_clip_median": "openai/clip-vit-large-patch14-336",
    "blip2_t": "Salesforce/blip2-itm-vit-g",
    "blip2_itm": "Salesforce/blip2-itm-vit-g",
    "blip_t_classdiffusion": "Salesforce/blip-itm-large-coco",
    "blip_itm": "Salesforce/blip-itm-large-coco",
}


def default_metrics(prompts: Sequence[str]) -> tuple[str, ...]:
    """What is measured unless the user says otherwise: whatever needs no download."""
    from hasten.commands import host

    for model in host().registry.models.values():
        if all(map(model.captions.contains, prompts)):
            return model.captions.metrics
    return _DEFAULTS


def metric_names(text: str | None, default: Sequence[str]) -> tuple[str, ...]:
    """Names from a comma list, checked; ``default`` without one.

    Raises:
        ConfigError: names the nearest metric that exists.
    """
    from hasten.commands import host

    if text is None:
        return tuple(default)
    names = [_ALIASES.get(name.strip(), name.strip()) for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError("--metrics: name at least one metric")
    for name in names:
        host().metric(name)
    return tuple(dict.fromkeys(names))


def build_metrics(
    names: Sequence[str], assignments: Sequence[str], device: str | None = None
) -> list[Metric]:
    """The metrics, each with its options.

    Args:
        names: of the metrics.
        assignments: ``NAME.OPTION=VALUE``, from the command line.
        device: torch device of their networks, where no option names another.

    Raises:
        ConfigError: for an option of a metric that is not measured, or naming every metric without the network it
            needs and the option that gives it.
        HastenError: as a metric's network can't be loaded.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    options = _metric_options(names, assignments)
    _raise_together([ConfigError(text) for name in names if (text := _lacks_network(name, options[name]))])
    made, faults = [], []
    for name in names:
        try:
            made.append(make_metric(name, options[name], device))
        except HastenError as error:
            faults.append(error)
    _raise_together(faults)
    return made


def make_metric(name: str, options: Mapping[str, Any], device: str | None = None) -> Metric:
    """The metric of that name, made with ``options``.

    Args:
        name: of the metric.
        options: for its factory.
        device: torch device of its network, if it has one and ``options`` name no other.

    Raises:
        ConfigError: if there is none, or an option is wrong.
    """
    from hasten.commands import host
    from hasten.eval.metric import Metric

    metric = host().metric(name)
    with host().culprit("metric", name).during("its factory"):
        try:
            made = metric.factory(**_placed(metric.factory, options, device))
        except TypeError as error:
            raise ConfigError(f"metric {name!r}: {error}; see hasten.eval.metrics for its options") from error
    if not isinstance(made, Metric):
        raise ConfigError(f"metric {name!r} is no hasten.eval.metric.Metric and can't be used here")
    return made


def _placed(factory: Callable[..., Any], options: Mapping[str, Any], device: str | None) -> dict[str, Any]:
    takes = device is not None and "device" in inspect.signature(factory).parameters
    return ({"device": device} if takes else {}) | dict(options)


def _metric_options(names: Sequence[str], assignments: Sequence[str]) -> dict[str, dict[str, Any]]:
    options: dict[str, dict[str, Any]] = {name: {} for name in names}
    for text in assignments:
        left, equals, right = text.partition("=")
        name, dot, option = left.strip().partition(".")
        name = _ALIASES.get(name, name)
        if not (equals and dot and option):
            raise ConfigError(f"--metric-option {text}: write NAME.OPTION=VALUE")
        if name not in options:
            raise ConfigError(f"--metric-option {text}: {name!r} is not measured{suggestion(name, options)}")
        options[name][option.strip()] = parse_yaml(right)
    return options


def _lacks_network(name: str, options: Mapping[str, Any]) -> str:
    """Which network a metric lacks, and the option that gives it; empty if nothing is lacking.

    Found without loading anything, so that several gigabytes are not read before the next metric's lack is told.
    """
    if name in _NEEDS_NETWORK and "network" not in options:
        return (
            f"{name} needs a network, which hasten does not download by default: give --metric-option "
            f"{name}.network=FOLDER, or {name}.network={_NEEDS_NETWORK[name]} to download the published one"
        )
    if name in ("fid", "kid") and not {"weights", "allow_download"} & {k for k, v in options.items() if v}:
        from hasten.eval.networks.inception import WEIGHT_FILES, cached_weights

        if options.get("network", "inception") == "inception" and cached_weights() is None:
            return (
                f"{name} needs Inception weights, which hasten does not download by default: give --metric-option "
                f"{name}.weights=FILE (the published {WEIGHT_FILES[0]}), {name}.allow_download=true to fetch it (with "
                f"pip install 'hasten[fid]'), or other features with {name}.network=CLIP_FOLDER"
            )
    if name == "lpips" and "weights" not in options:
        return (
            "lpips needs AlexNet weights, which hasten does not download: give --metric-option lpips.weights=FILE "
            "(torchvision's alexnet-owt-7be5be79.pth)"
        )
    return ""


def _raise_together(faults: Sequence[HastenError]) -> None:
    """Raise the only fault as it is, several as one that tells them all."""
    if len(faults) == 1:
        raise faults[0]
    if faults:
        told = "\n".join(f"  - {fault}" for fault in faults)
        raise ConfigError(f"{len(faults)} metrics can't be made:\n{told}")


def require_references(metrics: Sequence[Metric]) -> None:
    """Refuse metrics of sets that have nothing to compare with; the miniature ones bring true renders.

    Raises:
        ConfigError: names all of them.
    """
    lacking = [m.name for m in metrics if "reference" in m.needs]
    if lacking:
        verb = "compares" if len(lacking) == 1 else "compare"
        raise ConfigError(f"{', '.join(lacking)} {verb} with a set of real pictures: give --reference")


def parse_margins(texts: Sequence[str]) -> dict[str, float]:
    """``METRIC=VALUE`` -> largest tolerated loss.

    Raises:
        ConfigError: if one is not a non-negative number.
    """
    margins = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            margin = float(value)
        except ValueError:
            margin = -1.0
        if not equals or not 0 <= margin < float("inf"):
            raise ConfigError(
                f"--margin {text}: write METRIC=VALUE with the loss you tolerate, for example mini_classifier=0.05; it "
                "is 0 or more whichever way the metric points"
            )
        margins[name.strip()] = margin
    return margins


def ladder_of(
    wanted: bool | None,
    text: str | None,
    evaluation: Evaluation,
    *,
    reference: int,
    prompts: int,
    default: Sequence[int] | None = None,
) -> Ladder | None:
    """Where to look for the knee; ``None`` to leave it out.

    Args:
        wanted: of ``--knee`` or ``--no-knee``; ``None`` looks for it where a margin and a rung are at hand.
        text: of ``--ladder``.
        evaluation: the metrics and the user's margins; without any, the tolerances that the metrics bring.
        reference: steps of the baseline.
        prompts: how many to use.
        default: rungs without ``--ladder``; those of :func:`hasten.eval.compare.knee.default_steps` unless given.

    Raises:
        ConfigError: if the options contradict each other or can't be met.
    """
    from hasten.eval.compare.knee import Ladder, default_steps

    if wanted is False and text is not None:
        raise ConfigError("--ladder and --no-knee contradict each other: remove one")
    steps = default_steps(reference) if default is None else [n for n in default if n < reference]
    asked = wanted or text is not None
    if wanted is False or not (steps or asked):
        return None
    known = {metric.name: metric.tolerance for metric in evaluation.metrics if metric.tolerance is not None}
    margins = dict(evaluation.settings.margins or {}) or known
    if not margins:
        if asked:
            able = [m.name for m in evaluation.metrics if "baseline" not in m.needs or m.perfect is not None]
            raise ConfigError(
                "the knee is the fewest steps within a margin: give --margin METRIC=VALUE "
                f"(of what is measured, {', '.join(able) or 'nothing'} can have one), or --no-knee"
            )
        return None
    judges = [metric for metric in evaluation.metrics if metric.name in margins]
    fingerprints = {metric.name: metric.fingerprint().as_dict() for metric in judges}
    rungs = _ladder_steps(text) if text is not None else tuple(steps)
    return Ladder(rungs, margins, prompts, evaluation.settings.level, fingerprints)


def _ladder_steps(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) > 0 for word in words):
        raise ConfigError(f"--ladder {text}: write numbers of steps, for example 14,10,8,6")
    return tuple(sorted({int(word) for word in words}, reverse=True))
