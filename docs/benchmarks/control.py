"""Does an accelerated picture still follow its ControlNet? Writes ``control.json`` and prints its table.

``python docs/benchmarks/control.py`` makes pictures with ``mini/t2i-dit`` and the ControlNet of ``hasten-miniatures``,
whose condition is the outlines of a scene. All ways start from the same noise.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import hasten
from hasten.eval.statistics import paired_difference, paired_ratio_difference
from hasten.extend import Pipeline
from hasten.pipelines.mini import prompts
from hasten.pipelines.mini.render import render_scenes
from hasten.pipelines.mini.scenes import parse_caption
from hasten.pipelines.mini.scoring import PixelParser
from hasten_miniatures.outlines import agreement, outlines, to_tensor
from hasten_miniatures.t2i_outlines import CALL, load

FILE = Path(__file__).with_suffix(".json")
SEED = 23
WAYS: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "stock": (None, {}),
    "bottleneck, ControlNet at the low size": ({"bottleneck": {}}, {}),
    "bottleneck, its features resized": ({"bottleneck": {"control": "full"}}, {}),
    "stock without ControlNet": (None, {"controlnet_conditioning_scale": 0.0}),
}
"""Way -> techniques, and changes of the call."""


def make(pipe: Pipeline, captions: Sequence[str], conditions: Tensor, call: dict[str, Any]) -> list[Any]:
    """One picture for each caption; the pipeline draws from the global generator when it encodes the condition."""
    images = []
    for index, caption in enumerate(captions):
        torch.manual_seed(index)
        generator = torch.Generator().manual_seed(SEED + index)
        images += pipe(
            caption, control_image=conditions[index : index + 1], generator=generator, **call
        ).images
    return images


def measure(count: int, steps: int) -> None:
    """Store agreement with the condition and right attributes, picture by picture, way after way."""
    pipe = load()
    pipe.set_progress_bar_config(disable=True)
    captions = prompts(count, SEED)
    side = CALL["height"]
    conditions = outlines(render_scenes([parse_caption(text) for text in captions], SEED, 0, side))
    parser, found = PixelParser(), {}
    for way, (techniques, changes) in WAYS.items():
        call = {**CALL, "num_inference_steps": steps, **changes}
        if techniques is None:
            images, low = make(pipe, captions, conditions, call), 0
        else:
            with hasten.accelerate(pipe, techniques) as accel:
                images = make(pipe, captions, conditions, call)
                low = sum(step.resolution != step.size for step in accel.report().steps)
        scores = parser.score(images, captions)
        found[way] = {
            "agreement": agreement(to_tensor(images), conditions).tolist(),
            "right": [int(right) for right in scores.right],
            "asked": [int(asked) for asked in scores.asked],
            "low_steps": low,
        }
        result = {"prompts": count, "steps": steps, "side": side, "seed": SEED, "ways": found}
        FILE.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def table(result: dict[str, Any]) -> str:
    """The figures as Markdown; differences are to stock, with 95 % intervals over prompts."""
    stock = result["ways"]["stock"]
    lines = [
        "| way | low steps | outlines followed (F1) | difference | attributes right | difference |",
        "|---|---|---|---|---|---|",
    ]
    for way, found in result["ways"].items():
        follows = paired_difference(stock["agreement"], found["agreement"])
        right = paired_ratio_difference(stock["right"], found["right"], stock["asked"])
        mean = sum(found["agreement"]) / len(found["agreement"])
        share = sum(found["right"]) / sum(found["asked"])
        told = ["", ""] if way == "stock" else [_signed(follows), _signed(right)]
        lines.append(
            f"| {way} | {found['low_steps']} of {result['steps']} | {mean:.3f} | {told[0]} | {share:.3f} | {told[1]} |"
        )
    return "\n".join(lines)


def _signed(estimate: Any) -> str:
    return f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"


def main() -> None:
    """Measure, or with ``--table`` print the table of the stored figures."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--num-prompts", type=int, default=16)
    options.add_argument("--steps", type=int, default=8)
    options.add_argument("--table", action="store_true", help="print the stored figures")
    given = options.parse_args()
    if not given.table:
        measure(given.num_prompts, given.steps)
    sys.stdout.write(table(json.loads(FILE.read_text("utf-8"))) + "\n")


if __name__ == "__main__":
    main()
