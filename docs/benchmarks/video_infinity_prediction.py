"""Predicts a step on eight GPUs and on two machines of eight, from counted operations and bytes and assumed hardware.

    python docs/benchmarks/video_infinity_prediction.py

Published models without weights, on torch's ``meta`` device: operations by torch's counter, bytes by the formulas of
``plugins/video_infinity/cost.py`` from the shapes that the layers get. One clip per GPU. Nothing here is measured; what
is assumed stands in :data:`ASSUMED`. Writes ``video_infinity_prediction.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet3DConditionModel, WanTransformer3DModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hasten.extend import FrameMixing, LayerKind
from hasten.pipelines.adapters.text_to_video import UNet3DFrames
from hasten.pipelines.adapters.wan import WanFrames
from hasten.plugins.video_infinity.cost import Link, Messages, attention_bytes, efficiency, norm_bytes

ASSUMED = {
    "operations per second": 0.4 * 989e12,
    "inside a machine": {"latency": 25e-6, "rate": 0.6 * 450e9},
    "between machines": {"latency": 60e-6, "rate": 0.8 * 50e9},
}
"""An H100 at 40 % of its dense half-precision peak, NVLink at 60 % and a 400 Gb/s adapter per GPU at 80 %."""
GPUS = 8
HALF = 2
"""Bytes of a number."""
GROUPS = 32
_EXCHANGING = (LayerKind.NORM, LayerKind.TEMPORAL, LayerKind.ATTENTION)


@dataclass(frozen=True)
class Model:
    """A published model and how it is divided.

    Args:
        name: of the model and its size.
        mixing: its family.
        denoiser: on the ``meta`` device.
        inputs: of one forward with ``clip`` frames.
        clip: frames of one GPU.
        forwards: in a step.
    """

    name: str
    mixing: FrameMixing
    denoiser: nn.Module
    inputs: tuple[Tensor, ...]
    clip: int
    forwards: int


def models() -> Iterable[Model]:
    """VideoCrafter2's U-Net without the frame-rate condition, and two sizes of Wan 2.1."""
    unet = UNet3DConditionModel(cross_attention_dim=1024, attention_head_dim=64)
    words = torch.empty(2, 77, 1024)
    yield Model(
        "VideoCrafter2, 320 x 512",
        UNet3DFrames(),
        unet,
        (torch.empty(2, 4, 24, 40, 64), torch.ones(2), words),
        24,
        1,
    )
    for name, heads, hidden, layers, side in (
        ("Wan 1.3B, 480 x 832", 12, 8960, 30, (60, 104)),
        ("Wan 14B, 720 x 1280", 40, 13824, 40, (90, 160)),
    ):
        wan = WanTransformer3DModel(num_attention_heads=heads, ffn_dim=hidden, num_layers=layers)
        inputs = (torch.empty(1, 16, 21, *side), torch.ones(1), torch.empty(1, 512, 4096))
        yield Model(name, WanFrames(), wan, inputs, 21, 2)


def counted(model: Model) -> tuple[float, float, list[tuple[LayerKind, torch.Size, bool]]]:
    """Operations of a forward on one clip, those of attention between its frames, and the layers that exchange."""
    layers = [layer for layer in model.mixing.layers(model.denoiser) if layer.kind in _EXCHANGING]
    seen: list[tuple[LayerKind, torch.Size, bool]] = []
    for layer in layers:
        module = model.denoiser.get_submodule(layer.name)
        read = layer.reader is not None
        module.register_forward_pre_hook(
            lambda _, args, kwargs, kind=layer.kind, read=read: seen.append(
                (kind, (args[0] if args else kwargs["hidden_states"]).shape, read)
            ),
            with_kwargs=True,
        )
    with FlopCounterMode(display=False) as counter:
        model.denoiser(*model.inputs, return_dict=False)
    attention = sum(
        4.0 * shape[0] * shape[1] ** 2 * shape[2] for kind, shape, _ in seen if kind is LayerKind.ATTENTION
    )
    return counter.get_total_flops(), attention, seen


def frame_bytes(model: Model, shape: torch.Size) -> int:
    """Bytes of one frame of a layer's input, in half precision."""
    return HALF * shape.numel() // model.clip


def predicted(model: Model) -> dict[str, Any]:
    """Efficiency: time of the computation over that of the step."""
    operations, attention, layers = counted(model)
    halo, chosen = model.mixing.scope
    dual = operations - attention + attention * (2 * halo + 1 + chosen) / model.clip
    compute = model.forwards * dual / ASSUMED["operations per second"]  # type: ignore[operator]
    found: dict[str, Any] = {
        "clip": model.clip,
        "halo": halo,
        "global_frames": chosen,
        "compute_seconds": compute,
    }
    for machines in (1, 2):
        near, far = volumes(model, layers, machines)
        links = [Link(**ASSUMED[place]) for place in ("inside a machine", "between machines")]  # type: ignore[arg-type]
        parts = [Messages(model.forwards * len(layers), near, links[0])]
        if machines > 1:
            parts.append(Messages(model.forwards * len(layers), far, links[1]))
        name = f"{machines} x {GPUS}"
        found[name] = {
            "received_gigabytes": (near + far) / 1e9,
            "efficiency": efficiency(compute, parts),
        }
    return found


def volumes(
    model: Model, layers: list[tuple[LayerKind, torch.Size, bool]], machines: int
) -> tuple[float, float]:
    """Bytes that the busiest rank receives in a step, from its own machine and from the others."""
    ranks = GPUS * machines
    halo, chosen = model.mixing.scope
    near = far = 0.0
    for kind, shape, read in layers:
        if kind is LayerKind.NORM:
            own, all_ = (norm_bytes(shape[0], GROUPS, n) for n in (GPUS, ranks))
            edge = frame_bytes(model, shape) if read else 0  # the convolution behind it reaches one frame
        else:
            each = frame_bytes(model, shape)
            shares = [-(-chosen // ranks)] * ranks
            own, all_ = (attention_bytes(each, 0, shares[:n], 0) for n in (GPUS, ranks))
            edge = halo * each
        # The busiest rank is at the edge of a machine: one neighbour here, one there.
        near += own + edge * (2 if machines == 1 else 1)
        far += all_ - own + edge * (machines > 1)
    return model.forwards * near, model.forwards * far


def main() -> None:
    """Predict and write."""
    with torch.no_grad(), torch.device("meta"):
        found = {model.name: predicted(model) for model in models()}
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps({"assumed": ASSUMED, "models": found}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
