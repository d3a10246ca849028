"""What the ranks of the fault tests run: a tiny Wan that stops working in a chosen step of a chosen rank."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

STEPS = 6


def video(
    out: str, options: dict[str, Any], call: dict[str, Any] | None = None, fault: dict[str, Any] | None = None
) -> None:
    """Make the latents of a video; ``fault`` says what goes wrong: ``rank``, ``step`` and ``kind``."""
    from clip_cases import build
    from clip_cases import call as arguments
    from families import seeded

    import hasten
    from hasten._errors import HastenError

    given = dict(call or {})
    pipe = build("wan")
    if "solver" in given:
        import diffusers

        pipe.scheduler = getattr(diffusers, given.pop("solver"))(prediction_type="v_prediction")
    rank = int(os.environ.get("RANK", "0"))
    if fault is not None and fault["rank"] == rank:
        _spoil(pipe, fault)
    generator = given.pop("generator", True)
    given = {**seeded("wan"), **arguments("wan", 6, **{"num_inference_steps": STEPS, **given})}
    if not generator:
        given.pop("generator")
    began = time.monotonic()
    try:
        with hasten.accelerate(pipe, {"video_infinity": options}):
            latents = pipe(**given, return_dict=False)[0]
    except HastenError as error:
        sys.stdout.write(f"{type(error).__name__}: {error}\n")
        sys.stdout.write(f"after {time.monotonic() - began:.1f} s\n")
        sys.exit(7)
    torch.save(latents, f"{out}.{rank}")


def _spoil(pipe: Any, fault: dict[str, Any]) -> None:
    """Let this rank fail once it begins its ``step``-th forward."""
    count = 0

    def before(*_: Any) -> None:
        nonlocal count
        if count == fault["step"]:
            _fail(fault)
        count += 1

    pipe.transformer.blocks[1].register_forward_pre_hook(before)


def _fail(fault: dict[str, Any]) -> None:
    if fault["kind"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault["kind"] == "hang":
        time.sleep(1000)
    elif fault["kind"] == "busy":
        time.sleep(12)
        return
    elif fault["kind"] == "interrupt":
        raise KeyboardInterrupt
    raise RuntimeError("this rank has a bug")


def several_faults(out: str, options: dict[str, Any], faults: list[dict[str, Any]]) -> None:
    """Every rank its own fault, if it has one."""
    rank = int(os.environ["RANK"])
    video(out, options, None, next((fault for fault in faults if fault["rank"] == rank), None))


def filmed(out: str, options: dict[str, Any], fault: dict[str, Any] | None = None) -> None:
    """A video file; ``fault`` befalls the autoencoder of a rank."""
    from clip_cases import build
    from clip_cases import call as arguments
    from families import seeded

    from hasten._errors import HastenError
    from hasten.plugins.video_infinity.long_video import write_video

    family = (fault or {}).get("family", "wan")
    pipe = build(family)
    if fault is not None and fault["rank"] == int(os.environ["RANK"]):
        pipe.vae.decoder.register_forward_pre_hook(lambda *_: _fail(fault))
    try:
        write_video(pipe, out, {**seeded(family), **arguments(family, 6)}, options)
    except HastenError as error:
        sys.stdout.write(f"{type(error).__name__}: {error}\n")
        sys.exit(7)


def disagree(out: str, options: list[dict[str, Any]]) -> None:
    """Every rank with options of its own."""
    video(out, options[int(os.environ["RANK"])])


def limited(out: str, options: dict[str, Any], size: int) -> None:
    """A disk on which files cannot grow beyond ``size`` bytes on rank 1, standing in for a full one."""
    import resource

    if os.environ["RANK"] == "1":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    video(out, options)


def load(out: str, world: int) -> list[torch.Tensor]:
    return [torch.load(f"{out}.{rank}") for rank in range(world) if Path(f"{out}.{rank}").exists()]
