"""Writes ``video_infinity.md``, and draws its curve, from the figures in ``video_infinity*.json``."""

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
"""Way -> style of its line, in the order of colours."""
CURVE = Path(__file__).parents[1] / "images" / "video_infinity_drift.png"
PAGE = """# Video-Infinity

Random weights, {processor}, {cores} cores, one thread per process, torch {torch}, diffusers {diffusers}, gloo.
Figures by

    torchrun --nproc-per-node 2 docs/benchmarks/video_infinity.py
    for n in 1 2 4; do torchrun --nproc-per-node $n docs/benchmarks/video_infinity_memory.py; done

and this page by `docs/benchmarks/video_infinity_page.py`. Models: a Wan transformer (4 layers of width 256, 16 latent
frames of 256 tokens) and two levels of a UNet3D with the channels of the published ones (320 and 640; 48 frames of 8
x 8 positions, 24 in a process as in the paper). Halo 2, four global frames.

## Two processes against one

A fixed video. The ceiling is what the same two processes reach without a message: both make the whole video at once,
each for itself, which is twice the work. Medians of ratios within one repetition; in brackets the quartiles. Waiting:
share of the time in which computation stood still for messages. The last column compares with the two halves as
videos of their own: less work, since their frames see fewer others, so it may not reach 100 %. A share above 100 % says
that a process is faster on half of the frames.

| model | seconds, 1 and 2 processes | speed-up | ceiling | share of the ceiling | waiting | of two separate halves |
|---|---|---|---|---|---|---|
{strong}

Exchanges and bytes received per forward: {traffic}. {repetitions}.

## Clips added to one process

Clips of four latent frames, in lockstep in one process: seconds that each added clip costs.

| model | the first | the 2nd | the 3rd and 4th, each | the 5th to 8th, each | the 9th to 16th, each |
|---|---|---|---|---|---|
{weak}

The first clip is a video of four frames, which see no others.

## Memory

Eight latent frames in every process: most memory that a process needed beyond what it had before the call, in MB.

| model | 1 process, 8 frames | 2 processes, 16 frames | 4 processes, 32 frames |
|---|---|---|---|
{memory}

One process that makes the whole video alone, in clips of eight latent frames:

| model | {alone_clips} clips |
|---|{alone_rule}
{alone}

Constant, then, where processes are added with frames. Where clips are added to a process, it keeps for each what a
layer holds while the clip waits: states, queries, keys and values (about 5 MB a frame here, with 2 layers as with 8),
as any exact computation over all frames has to. Only the latents are kept from step to step.

Decoding and encoding to a file on one process, 128 x 128 pixels:

| latent frames | {decoded_frames} |
|---|{rule}
| MB | {decoded} |

{trained}## Next to diffusers' context parallelism

Every frame seeing all others (`mode="full"`), the transformer above, one forward, medians of five: {one:.2f} s in one
process, {hasten:.2f} s in two with hasten, {theirs:.2f} s in two with diffusers'
`ContextParallelConfig(ulysses_degree=2)`. Both are exact. On a CPU diffusers divides by the number of accelerators,
which is zero; the benchmark sets it to one. Its processes hold all latents and run the whole scheduler and
autoencoder; it has no U-Net video model and no window, so beyond the trained length there is nothing to compare.

## Prediction, not measured

The cost model of [cost.py](../../plugins/video_infinity/cost.py), fitted to both runs above ({latency:.1f} ms per
exchange; bytes explain none of the difference on this machine): computation over total time at equal frames per
process.

| model | 2 processes | 8 | 16 |
|---|---|---|---|
{predicted}

GPUs compute faster and their links are faster, too, so these figures do not carry over. For them, from operations and
bytes counted on published models without weights (`docs/benchmarks/video_infinity_prediction.py`), one clip per GPU,
nothing overlapped, mode `dual` with inputs exchanged, and assumed hardware: {operations:.0f} Tflop/s per GPU,
{inside} inside of a machine, {between} between machines.

| model | frames per clip | seconds of computation | GB a step, 8 GPUs | efficiency | GB, 2 x 8 | efficiency |
|---|---|---|---|---|---|---|
{gpus}

The busiest rank counts, at the edge of a machine. The U-Net computes little for each byte of its halos, so that a slow
link at that edge shows; overlap with computation would hide a part. The paper's overhead on eight GPUs is 28.6 % (an
efficiency of 77.7 %). Nothing was measured on a GPU or on several machines.
"""

TRAINED = """## Trained miniatures

Videos of eight times the trained length, moving objects. With this technique: `divided` by its defaults (a window of
the trained length, and frames of the whole video: in the flow model, `mini/t2v-dit`, half as many, each of which
weighs a twentieth of a neighbour; in the diffusion model, `mini/t2v-unet`, as many, which rule the early steps),
`windowed` without frames of the whole video, `early_global` with half the window and frames of the whole video that
rule the early steps in both, `unbiased` with twice the trained length of frames of the whole video, none of them
favoured (U-Net only). Beside them: `independent` cuts the same noise into videos of their own, `extended` asks
the stock pipeline for all frames. Read in windows of 16 frames: motion from the places of the object; the other
attributes by the classifier and by the pixel parser, which knows {coded} of the shapes of real videos again after the
autoencoder coded them. Good windows have four fifths of their attributes right, motion and those of the judge.
Similarity: of the object with that in the first frame so many frames before, in features of the bundled contrastive
model. At a seam: the change of the picture, and the step of the object, from the last frame of a clip to the first of
the next, over those inside clips. By

{commands}

| {titles} |
|{rule}
{rows}

![Similarity with the first frame at growing distance](../images/video_infinity_drift.png)

Clips of their own jump where they meet, divided videos hardly do, and nothing drifts with the length in any of the
ways. With `mini/t2v-dit`, divided videos keep four fifths of the windows good, as many as clips of their own and as
the stock pipeline, which computes attention over all frames. Frames of the whole video that rule the early steps
steady what an object looks like there and blur which way it moves: that is decided in those steps, and far frames say
nothing of it. `mini/t2v-unet` moves as told under every rule and keeps nine tenths of the windows good by the
classifier. The pixel parser marks down objects that are there twice for some frames, mostly where one leaves the
picture while the next is already coming in. It finds four fifths of the windows good where many frames see the same
ones: in clips of their own, in the stock pipeline's videos (`mode="full"` computes the same in clips) and, within one
window of 48, in `unbiased` ones; three quarters by default; two thirds or fewer where a sliding window decides. Its
temporal attention has no positions: every frame it sees is one more witness of what is shown, and none of them blurs
where it is.

"""
TITLES = (
    "model | frames | prompts | way | motion right | all attributes: classifier, parser "
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
    """Draw similarity with the first frame against distance, a panel for each model."""
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
    """Seconds that each clip costs beyond those before it."""
    totals = [(0.0, 0.0)] + [(row["clips"], row["clips"] * row["seconds_per_clip"]) for row in rows]
    return [(after - before) / (m - n) for (n, before), (m, after) in itertools.pairwise(totals)]


def row(name: str, values: Any, form: str) -> str:
    """A line of a table."""
    return " | ".join([f"| {name}", *(form.format(value) for value in values)]) + " |"


if __name__ == "__main__":
    main()
