"""Writes ``video_infinity.md`` and draws its plot from the figures in ``video_infinity*.json``."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

LINES: dict[str, Any] = {
    "divided": "-",
    "windowed": "-.",
    "early_global": (0, (5, 1, 1, 1, 1, 1)),
    "unbiased": (0, (1, 3)),
    "independent": "--",
    "extended": ":",
}
"""Method -> line style, in the order of colours."""
CURVE = Path(__file__).parents[1] / "images" / "video_infinity_drift.png"
PAGE = """# Video-Infinity

Models with random weights on {processor}, {cores} cores, one thread per process, torch {torch}, diffusers
{diffusers}, gloo. Commands:

    torchrun --nproc-per-node 2 docs/benchmarks/video_infinity.py
    for n in 1 2 4; do torchrun --nproc-per-node $n docs/benchmarks/video_infinity_memory.py; done

`docs/benchmarks/video_infinity_page.py` writes this page. The models are a Wan transformer (4 layers of width 256, 16
latent frames of 256 tokens) and two levels of a UNet3D with the channels of the published models (320 and 640; 48
frames of 8 x 8 positions, 24 per process as in the paper). Halo 2, four global frames.

## Two processes against one

The same video on one and on two processes. The ceiling is the speed-up of the two processes without messages: each
computes the whole video, and together they do twice the work. Figures are medians of ratios within one repetition,
with quartiles in brackets. Waiting is the share of time in which computation waits for messages. The last column,
share of separate halves, compares with computing the two halves as separate videos. This is less work, since their
frames attend to fewer others, so 100 % may be out of reach. A share of the ceiling above 100 % means that a process
is faster on half of the frames.

| model | seconds, 1 and 2 processes | speed-up | ceiling | share of the ceiling | waiting | of separate halves |
|---|---|---|---|---|---|---|
{strong}

Exchanges and bytes received per forward: {traffic}. {repetitions}.

## Clips added to one process

Several clips of four latent frames in one process: seconds for each additional clip.

| model | the first | the 2nd | the 3rd and 4th, each | the 5th to 8th, each | the 9th to 16th, each |
|---|---|---|---|---|---|
{weak}

With one clip, the video has only four frames, which attend to no others.

## Memory

Eight latent frames per process: peak memory of a process above its memory before the call, in MB.

| model | 1 process, 8 frames | 2 processes, 16 frames | 4 processes, 32 frames |
|---|---|---|---|
{memory}

One process for the whole video, in clips of eight latent frames:

| model | {alone_clips} clips |
|---|{alone_rule}
{alone}

Memory per process is constant if the number of processes grows with the number of frames. A process with several
clips keeps the data of the current layer for each waiting clip: states, queries, keys and values (here about 5 MB per
frame, with 2 layers as with 8). Every exact computation over all frames needs this. Between steps, only the latents
are kept.

Decoding and writing a file on one process, 128 x 128 pixels:

| latent frames | {decoded_frames} |
|---|{rule}
| MB | {decoded} |

{trained}## Next to diffusers' context parallelism

One forward of the transformer above, in which every frame attends to all others (`mode="full"`), medians of five:
{one:.2f} s with one process, {hasten:.2f} s with two processes of hasten, and {theirs:.2f} s with two processes of
diffusers' `ContextParallelConfig(ulysses_degree=2)`. Both are exact. On a CPU, diffusers divides by the number of
accelerators, which is zero; the benchmark sets it to one. With diffusers, every process holds all latents and runs
the whole scheduler and autoencoder. It supports no U-Net video model and has no window, so longer videos than the
trained length cannot be compared.

## Prediction, not measured

The cost model of [cost.py](../../plugins/video_infinity/cost.py), fitted to both runs above ({latency:.1f} ms per
exchange; the number of bytes has no effect on this machine): computation over total time, with the same number of
frames per process.

| model | 2 processes | 8 | 16 |
|---|---|---|---|
{predicted}

These figures do not apply to GPUs, whose computation and links are both faster. The following figures are predicted
from the operations and bytes of published models, counted without weights
(`docs/benchmarks/video_infinity_prediction.py`). Assumptions: one clip per GPU, no overlap, mode `dual` with
exchanged inputs, {operations:.0f} Tflop/s per GPU, {inside} inside a machine, {between} between machines.

| model | frames per clip | seconds of computation | GB a step, 8 GPUs | efficiency | GB, 2 x 8 | efficiency |
|---|---|---|---|---|---|---|
{gpus}

The figures are those of the slowest rank, at the boundary of a machine. The U-Net computes little per byte of its
halos, so a slow link there reduces its efficiency; overlap with computation would hide a part of it. The overhead
in the paper is 28.6 % on eight GPUs (an efficiency of 77.7 %). Nothing was measured on a GPU or on several
machines.
"""

TRAINED = """## Trained miniatures

Videos of moving objects with eight times the trained length.

| method | description |
|---|---|
| `divided` | this technique with its defaults: a window of the trained length, and global frames (below) |
| `windowed` | no global frames |
| `early_global` | half the window; global frames are favoured in early steps in both models |
| `unbiased` | twice as many global frames as trained frames, without a bias (U-Net only) |
| `independent` | the same noise, divided into separate videos |
| `extended` | the stock pipeline with all frames |

By default, the flow model `mini/t2v-dit` has half as many global frames as trained frames, each with a twentieth of
the weight of a neighbour. The diffusion model `mini/t2v-unet` has as many as trained frames, favoured in early steps.

Videos are scored in windows of 16 frames. Motion is read from the places of the object. The other attributes are read
by the classifier and by the pixel parser, which recognises {coded} of the shapes of real videos after the
autoencoder. In good windows, at least four fifths of the attributes are right, including motion. Similarity compares
the object with that of the first frame, at the given distance in frames, in features of the bundled contrastive
model. Seam change and seam step are the change of the picture and the step of the object between two clips, relative
to those within clips. Commands:

{commands}

| {titles} |
|{rule}
{rows}

![Similarity with the first frame at growing distance](../images/video_infinity_drift.png)

Independent videos jump between clips, divided videos change little there, and no method drifts with the length.

**`mini/t2v-dit`**: at least four fifths of the windows of divided videos are good, as many as with independent clips
and with the stock pipeline. If global frames are favoured in early steps, the appearance of the object is more stable
and its motion is less often right: these steps decide the motion, and distant frames have no information about it.

**`mini/t2v-unet`**: with every method, the motion is right and the classifier finds at least nine tenths of the
windows good. The pixel parser marks down objects that appear twice in some frames, mostly where one leaves the
picture while the next one enters. It finds about four fifths of the windows good if many frames attend to the same
frames: in independent clips, in videos of the stock pipeline (`mode="full"` computes the same in clips) and, within
one window of 48, in `unbiased` ones. It finds three quarters good with the defaults, and two thirds or fewer if a
sliding window dominates. The temporal attention of this model has no positions, so additional frames support the
appearance of the object without blurring its place.

"""
TITLES = (
    "model | frames | prompts | method | motion right | all attributes: classifier, parser "
    "| good windows: classifier, parser | similarity {} | seam change | seam step"
)


def main() -> None:
    """Write the page."""
    folder = Path(__file__).parent
    document = json.loads((folder / "video_infinity.json").read_text("utf-8"))
    memory = json.loads((folder / "video_infinity_memory.json").read_text("utf-8"))
    found = [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("video_infinity_t2v-*.json"))]
    foretold = json.loads((folder / "video_infinity_prediction.json").read_text("utf-8"))
    text = page(document["machine"], document["results"], memory, found, foretold)
    (folder / "video_infinity.md").write_text(text, "utf-8")
    if found:
        draw(found)


def page(
    machine: dict[str, Any],
    results: dict[str, Any],
    memory: dict[str, Any],
    found: list[dict[str, Any]],
    foretold: dict[str, Any],
) -> str:
    """The page's Markdown."""
    kinds = ("transformer", "unet")
    prediction, peers, decoding = results["prediction"], results["peers"], memory["decoding"]
    return PAGE.format(
        **machine,
        strong="\n".join(strong(kind, results[kind]) for kind in kinds),
        traffic=", ".join(
            f"{kind} {results[kind]['rounds']:.0f} and {results[kind]['received_bytes'] / 1e6:.1f} MB"
            for kind in kinds
        ),
        repetitions="Repetitions: " + ", ".join(f"{kind} {results[kind]['repetitions']}" for kind in kinds),
        weak="\n".join(row(kind, added(results["weak"][kind]), "{:.2f}") for kind in kinds),
        memory="\n".join(row(kind, [memory[kind][n] for n in ("1", "2", "4")], "{:.0f}") for kind in kinds),
        alone_clips=" | ".join(memory["alone"]["unet"]),
        alone_rule="---|" * len(memory["alone"]["unet"]),
        alone="\n".join(row(kind, memory["alone"][kind].values(), "{:.0f}") for kind in kinds),
        decoded_frames=" | ".join(str(entry["latent_frames"]) for entry in decoding),
        rule="---|" * len(decoding),
        decoded=" | ".join(f"{entry['megabytes']:.0f}" for entry in decoding),
        trained=trained(found),
        one=peers["one"],
        hasten=peers["hasten"],
        theirs=peers["diffusers"],
        latency=prediction["link"]["latency"] * 1e3,
        predicted="\n".join(row(k, prediction["efficiency"][k].values(), "{:.1%}") for k in kinds),
        operations=foretold["assumed"]["operations per second"] / 1e12,
        inside=link(foretold["assumed"]["inside a machine"]),
        between=link(foretold["assumed"]["between machines"]),
        gpus="\n".join(gpus(name, entry) for name, entry in foretold["models"].items()),
    )


def link(assumed: dict[str, float]) -> str:
    """A connection in words."""
    return f"{assumed['rate'] / 1e9:.0f} GB/s and {assumed['latency'] * 1e6:.0f} us per exchange"


def gpus(name: str, entry: dict[str, Any]) -> str:
    """A line of the table of predictions."""
    cells = [name, str(entry["clip"]), f"{entry['compute_seconds']:.2f}"]
    for size in ("1 x 8", "2 x 8"):
        cells += [f"{entry[size]['received_gigabytes']:.1f}", f"{entry[size]['efficiency']:.1%}"]
    return f"| {' | '.join(cells)} |"


def strong(kind: str, measured: dict[str, Any]) -> str:
    """A line of the first table."""
    seconds, quartiles = measured["seconds"], measured["share_quartiles"]
    return (
        f"| {kind} | {seconds['one']:.2f}, {seconds['together']:.2f} | {measured['speed_up']:.2f} "
        f"| {measured['ceiling']:.2f} | {measured['share_of_ceiling']:.1%} [{quartiles[0]:.1%}, {quartiles[1]:.1%}] "
        f"| {measured['waiting_share']:.1%} | {measured['share_of_halves']:.1%} |"
    )


def trained(found: list[dict[str, Any]]) -> str:
    """The section on trained miniatures, empty without one."""
    if not found:
        return ""
    distances = [
        d for d in ("1", "16", "64", "128") if all(d in f["ways"]["divided"]["similarity"] for f in found)
    ]
    rows = []
    for entry in found:
        for way, figures in entry["ways"].items():
            along = ", ".join(f"{figures['similarity'][d]:.2f}" for d in distances)
            name = f"| `{entry['model']}` | {entry['frames']} | {entry['prompts']} | {way}"
            judged = [
                ", ".join(f"{figures[judge][kind]:.0%}" for judge in ("classifier", "parser"))
                for kind in ("attributes", "good_windows")
            ]
            shares = f"{figures['motion']:.0%} | {' | '.join(judged)}"
            seams = f"{figures['seam_change']:.2f} | {figures['seam_step']:.2f}"
            rows.append(f"{name} | {shares} | {along} | {seams} |")
    scripts = (
        f"    python docs/benchmarks/video_infinity_mini.py {entry['model']} --times {entry['times']} "
        f"--prompts {entry['prompts']} --steps {entry['steps']} --guidance-scale {entry['guidance_scale']:g}"
        for entry in found
    )
    titles = TITLES.format(", ".join(distances))
    return TRAINED.format(
        commands="\n".join(scripts),
        coded=" and ".join(dict.fromkeys(f"{entry['coded_shapes']:.0%}" for entry in found)),
        titles=titles,
        rule="---|" * len(titles.split(" | ")),
        rows="\n".join(rows),
    )


def draw(found: list[dict[str, Any]]) -> None:
    """Plot similarity with the first frame against distance, with one panel per model."""
    figure = Figure(figsize=(5 * len(found), 3.8), layout="constrained")
    for axes, entry in zip(figure.subplots(1, len(found), squeeze=False)[0], found):
        for way, figures in entry["ways"].items():
            along, number = figures["similarity"], list(LINES).index(way)
            style = {"color": f"C{number}", "linestyle": LINES[way], "label": way}
            axes.plot([int(d) for d in along], list(along.values()), **style)
        axes.set_title(entry["model"])
        axes.set_xlabel("frames from the first one")
        axes.set_ylabel("similarity")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(CURVE, dpi=120)


def added(rows: list[dict[str, float]]) -> list[float]:
    """Seconds for each additional clip."""
    totals = [(0.0, 0.0)] + [(row["clips"], row["clips"] * row["seconds_per_clip"]) for row in rows]
    return [(after - before) / (m - n) for (n, before), (m, after) in itertools.pairwise(totals)]


def row(name: str, values: Any, form: str) -> str:
    """A line of a table."""
    return " | ".join([f"| {name}", *(form.format(value) for value in values)]) + " |"


if __name__ == "__main__":
    main()
