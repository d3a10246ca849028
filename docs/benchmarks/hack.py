"""Measures HACK on whole pipelines in the shapes of published models with random weights, and on the miniatures.

    python docs/benchmarks/hack.py time infinity-2b --layers 2 --rounds 3
    python docs/benchmarks/hack.py limit var-d16 --mib 1500
    python docs/benchmarks/hack.py time infinity-8b --pictures 8 --device cuda
    python docs/benchmarks/hack.py divergence mini/var docs/benchmarks/hack/*_70.yaml

``time`` generates in turn with the exact cache and with each ratio and prints the medians of the rounds as a table.
``limit`` looks for the largest batch under a limit on memory beyond the weights, which the operating system enforces
(on CUDA: the allocator). Time and memory do not depend on the values of weights. Pictures are not decoded.
``divergence`` compares a miniature's predictions with those of the exact cache on the same tokens, those that the exact
cache drew: the mean Kullback-Leibler divergence, in nats per choice, which a few prompts settle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

import hasten
from hasten.commands import describe_machine
from hasten.eval.efficiency.timing import synchronize
from hasten.extend import Pipeline
from hasten.pipelines.infinity.bsq_model import BSQAutoencoder
from hasten.pipelines.infinity.pipeline import InfinityPipeline
from hasten.pipelines.var.cache import DenseKVCache
from hasten.pipelines.var.pipeline import VARPipeline
from hasten.pipelines.var.scheduler import NextScaleScheduler
from hasten.pipelines.var.transformer import NextScaleTransformer
from hasten.pipelines.var.vq_model import MultiScaleVQModel
from hasten.plugins.hack.bench import SHAPES

BITS = {"infinity-2b": (32, 1), "infinity-8b": (14, 2)}
"""Bits of a latent position, and positions of one side of a token."""
TEXT_TOKENS = 32
OUT_OF_MEMORY = 9
"""Exit code of a generation that the limit stopped."""
HALF_CONTEXTUAL = {"alpha": 0.5}
"""Random weights have no head types of their own."""


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def make_pipe(name: str, layers: int | None, device: str, dtype: torch.dtype) -> Any:
    """A pipeline of the published shape whose tokenizer has no convolutions worth the name."""
    shape = SHAPES[name]
    common: dict[str, Any] = {
        "num_layers": layers or shape.layers,
        "hidden_size": shape.heads * shape.dim,
        "num_heads": shape.heads,
        "schedule": shape.schedule,
        "num_levels": len(shape.schedule),
    }
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            if name in BITS:
                bits, patch = BITS[name]
                token = bits * patch**2
                transformer = NextScaleTransformer(
                    **common,
                    token_dim=token,
                    num_outputs=2 * token,
                    condition="text",
                    shared_modulation=True,
                    rotary=True,
                )
                vae: Any = BSQAutoencoder((8, 8, 8, 8, 8)[: 6 - patch], 1, bits, patch, norm_groups=8)
                scheduler = NextScaleScheduler("constant", 3.0, 900, 0.97)
                pipe: Any = InfinityPipeline(transformer.eval(), vae.eval(), scheduler, resolution=None)
            else:
                transformer = NextScaleTransformer(**common, shared_modulation=name == "var-d36")
                vae = MultiScaleVQModel((8, 8, 8, 8, 8), 1, norm_groups=8, attention=False)
                pipe = VARPipeline(transformer.eval(), vae.eval(), NextScaleScheduler())
    finally:
        torch.set_default_dtype(default)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generate(pipe: Pipeline, pictures: int) -> tuple[float, int]:
    """Seconds of one batch, and the most bytes its cache held."""
    device = pipe.transformer.device
    call: dict[str, Any] = {"class_labels": list(range(pictures))}
    if isinstance(pipe, InfinityPipeline):
        width = pipe.transformer.config["text_width"]
        call = {"prompt_embeds": torch.randn(pictures, TEXT_TOKENS, width, device=device)}
    held = [0]

    def watch(given: Any, end: Any) -> None:  # noqa: ARG001
        held[0] = max(held[0], cache.nbytes)

    cache = DenseKVCache()
    synchronize(device)
    began = time.perf_counter()
    pipe(
        **call,
        generator=torch.Generator(device).manual_seed(0),
        output_type="latent",
        kv_cache=cache,
        callback_on_scale_end=watch,
    )
    synchronize(device)
    return time.perf_counter() - began, held[0]


def once(pipe: Pipeline, ratio: float | None, pictures: int, calibration: str | None) -> dict[str, Any]:
    """One batch, exact or compressed."""
    device = pipe.transformer.device
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    row: dict[str, Any] = {"ratio": ratio}
    if ratio is None:
        row["seconds"], row["cache_bytes"] = generate(pipe, pictures)
    else:
        options = {"ratio": ratio, **HALF_CONTEXTUAL, "calibration": calibration}
        with hasten.accelerate(pipe, {"hack": options}) as acceleration:
            row["seconds"], row["cache_bytes"] = generate(pipe, pictures)
            facts = [step.facts["hack"] for step in acceleration.report().steps if step.facts]
        if facts:  # with nothing to remove, nothing is attached
            row["cache_bytes"] = max(f["peak_bytes"] for f in facts)
            row["choosing_seconds"] = facts[-1]["compression_ms"] / 1e3
    if device.type == "cuda":
        row["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return row


def write_calibration(pipe: Pipeline, name: str, layers: int, path: str) -> str:
    """A calibration file of ``pipe`` in which half of the heads are contextual."""
    from dataclasses import replace

    from hasten.plugins.hack.bench import balanced_artefact
    from hasten.plugins.hack.calibration import fingerprint

    replace(balanced_artefact(SHAPES[name], layers), model=fingerprint(pipe)).write(Path(path))
    return path


def run_time(args: argparse.Namespace) -> None:
    """Interleaved rounds; prints Markdown rows, or JSON."""
    import tempfile

    pipe = make_pipe(args.shape, args.layers, args.device, getattr(torch, args.dtype))
    layers = args.layers or SHAPES[args.shape].layers
    wanted: list[float | None] = [None, *args.ratios]
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        calibration = write_calibration(pipe, args.shape, layers, file.name)
        if args.warm_up:
            once(pipe, None, 1, None)
        rows = [[once(pipe, r, args.pictures, calibration) for r in wanted] for _ in range(args.rounds)]
    found = []
    for runs in zip(*rows):
        ratios = [run["seconds"] / base["seconds"] for run, base in zip(runs, (row[0] for row in rows))]
        found.append({**runs[0], "seconds": [run["seconds"] for run in runs], "of_exact": ratios})
    settings = {key: value for key, value in vars(args).items() if key not in ("run", "json")}
    if args.json:
        say(json.dumps({"machine": describe_machine(), "settings": settings, "rows": found}, indent=2))
        return
    say("| cache | seconds | of exact | cache MiB | peak MiB |\n|---|---|---|---|---|")
    for row in found:
        label = "exact" if row["ratio"] is None else f"ratio {row['ratio']:g}"
        peak = f"{row['peak_bytes'] / 2**20:.0f}" if "peak_bytes" in row else ""
        say(
            f"| {label} | {statistics.median(row['seconds']):.2f} | {statistics.median(row['of_exact']):.3f} "
            f"[{min(row['of_exact']):.3f}, {max(row['of_exact']):.3f}] | {row['cache_bytes'] / 2**20:.0f} | {peak} |"
        )


def run_limited(args: argparse.Namespace) -> None:
    """One batch under the limit, in this process; exits with :data:`OUT_OF_MEMORY` if it does not fit."""
    import tempfile

    torch.set_num_threads(1)
    layers = args.layers or SHAPES[args.shape].layers
    pipe = make_pipe(args.shape, args.layers, args.device, getattr(torch, args.dtype))
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        calibration = write_calibration(pipe, args.shape, layers, file.name)
        once(pipe, args.ratio, 1, calibration)  # what the libraries allocate once is no matter of the batch
        allow_more(args.mib * 2**20, args.device)
        try:
            once(pipe, args.ratio, args.pictures, calibration)
        except (RuntimeError, MemoryError) as error:
            if "memory" not in str(error).lower() and not isinstance(error, MemoryError):
                raise
            sys.exit(OUT_OF_MEMORY)


def allow_more(limit: int, device: str) -> None:
    """Let this process allocate ``limit`` bytes more than it has now."""
    if device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_allocated() + limit) / total)
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text("utf-8").split()[5])  # data and stack
    now = pages * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (now + limit, now + limit))


def fits(args: argparse.Namespace, ratio: float | None, pictures: int) -> bool:
    """Whether a batch runs in a process of its own under the limit."""
    command = [sys.executable, __file__, "once", args.shape, "--mib", str(args.mib)]
    command += ["--pictures", str(pictures), "--device", args.device, "--dtype", args.dtype]
    command += ["--layers", str(args.layers)] if args.layers else []
    command += ["--ratio", str(ratio)] if ratio is not None else []
    code = subprocess.run(command, check=False).returncode
    if code not in (0, OUT_OF_MEMORY):
        raise SystemExit(f"a run of {pictures} pictures failed with exit code {code}")
    return code == 0


def run_limit(args: argparse.Namespace) -> None:
    """The largest batch for the exact cache and for each ratio, by doubling and halving."""
    say("| cache | largest batch |\n|---|---|")
    low = 1
    for ratio in (None, *args.ratios):
        high = low
        while fits(args, ratio, high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(args, ratio, middle) else (low, middle)
        say(f"| {'exact' if ratio is None else f'ratio {ratio:g}'} | {low} |")


def run_divergence(args: argparse.Namespace) -> None:
    """One row for each configuration: divergence at the last three scales and over all choices of a picture."""
    from hasten.pipelines import mini

    pipe = hasten.load(args.model)
    pipe.set_progress_bar_config(disable=True)
    captions, call = mini.prompts(args.num_prompts, 3), mini.recommended_call(args.model)

    def predictions(choices: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Logits of every scale on given choices, or on the pipeline's own where there are none; and the choices."""
        seen: list[torch.Tensor] = []
        drawn: list[torch.Tensor] = []
        step = pipe.scheduler.step

        def force(logits: torch.Tensor, classes: int, **options: Any) -> torch.Tensor:
            if len(logits) != len(captions):  # the calibrating call
                return step(logits, classes, **options)
            seen.append(logits.unflatten(-1, (-1, classes)).flatten(1, 2))
            drawn.append(choices[len(drawn)] if choices else step(logits, classes, **options))
            return drawn[-1]

        pipe.scheduler.step = force
        try:
            generators = [torch.Generator().manual_seed(i) for i in range(len(captions))]
            pipe(captions, generator=generators, output_type="latent", **call)
        finally:
            del pipe.scheduler.step
        return seen, drawn

    exact, choices = predictions([])
    say("| configuration | last scale but two | last but one | last | mean |\n|---|---|---|---|---|")
    for path in args.configs:
        with hasten.accelerate(pipe, path):
            seen = predictions(choices)[0]
        scales = [_divergence(p, q) for p, q in zip(exact, seen)]
        counts = [p.shape[1] for p in exact]
        mean = sum(d * n for d, n in zip(scales, counts)) / sum(counts)
        figures = " | ".join(f"{value:.3f}" for value in (*scales[-3:], mean))
        say(f"| {Path(path).stem} | {figures} |")


def _divergence(exact: torch.Tensor, other: torch.Tensor) -> float:
    """Mean of KL(exact || other) over rows and choices of logits (B, n, V)."""
    p, q = exact.log_softmax(-1), other.log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run in (("time", run_time), ("limit", run_limit), ("once", run_limited)):
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("shape", choices=sorted(SHAPES))
        command.add_argument("--layers", type=int, help="so many layers instead of the model's")
        command.add_argument("--pictures", type=int, default=1)
        command.add_argument("--ratios", type=float, nargs="*", default=[0.7, 0.9])
        command.add_argument("--ratio", type=float)
        command.add_argument("--rounds", type=int, default=3)
        command.add_argument("--warm-up", action="store_true")
        command.add_argument("--mib", type=int, default=1024, help="memory beyond the weights")
        command.add_argument("--device", default="cpu")
        command.add_argument("--dtype", default="bfloat16")
        command.add_argument("--json", action="store_true")
    command = commands.add_parser("divergence")
    command.set_defaults(run=run_divergence)
    command.add_argument("model")
    command.add_argument("configs", nargs="+")
    command.add_argument("--num-prompts", type=int, default=32)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
