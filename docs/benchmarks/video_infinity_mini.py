"""Long videos of a trained miniature: attributes along the video, drift, and seams, against two simpler ways.

    python docs/benchmarks/video_infinity_mini.py mini/t2v-dit [--times 8] [--prompts 6] [--guidance-scale 4]

Ways: ``divided`` (clips, with the technique's defaults), ``windowed`` (the same without frames of the whole video),
``early_global`` (half the window, and frames of the whole video, which rule the first fifth of the steps),
``independent`` (the same noise, every clip a video of its own) and ``extended`` (the stock pipeline, asked for that
many frames). Only those after ``--ways`` are made; others keep the figures that they have, so that several runs can
share the work.
Attributes are read in windows of 16 frames that follow one another: motion from the object's places, the others by the
attribute classifier, and by the pixel parser. Drift is the cosine similarity of frames with the first one, in features
of the bundled contrastive model, the object rolled into the middle. A seam is the step of the object, and the
difference of pictures, from the last frame of a clip to the first of the next, over the median inside clips. Writes
``video_infinity_NAME.json`` and a strip of frames for each prompt and way below ``--out``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import hasten
from hasten.commands import describe_machine
from hasten.pipelines import mini
from hasten.pipelines.mini import product_name
from hasten.schedules.clips import partition
from hasten_miniatures.motion import Frames, VideoClassifier, VideoParser, centred, read_video
from hasten_miniatures.moving import render_videos, sample_moving_scene

WINDOW = 16
WAYS = ("divided", "windowed", "early_global", "unbiased", "independent", "extended")
HERE = Path(__file__).parent


class Ways:
    """The ways to make a long video with one pipeline.

    Args:
        model: name of the miniature.
        times: how many trained lengths.
        steps: denoising steps.
        guidance: guidance scale; the recommended one unless given.
    """

    def __init__(self, model: str, times: int, steps: int, guidance: float | None = None) -> None:
        self.pipe: Any = hasten.load(model)
        self.pipe.set_progress_bar_config(disable=True)
        self.call = mini.recommended_call(model) | {"num_inference_steps": steps}
        if guidance is not None:
            self.call["guidance_scale"] = guidance
        self.factor = getattr(self.pipe, "vae_scale_factor_temporal", 1)
        self.trained = self.latent_frames(self.call["num_frames"])
        self.latents = times * self.trained
        self.clips = partition(self.latents, times)

    def latent_frames(self, frames: int) -> int:
        """Latent frames of a video."""
        return (frames - 1) // self.factor + 1

    def frames(self, latents: int) -> int:
        """Frames of a number of latent ones."""
        return (latents - 1) * self.factor + 1

    def noise(self, seed: int) -> torch.Tensor:
        """Noise of the whole video, (1, C, F, H, W)."""
        channels = getattr(self.pipe, "transformer", None) or self.pipe.unet
        side = self.call["height"] // getattr(self.pipe, "vae_scale_factor_spatial", 4)
        shape = (1, channels.config.in_channels, self.latents, side, side)
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def make(self, prompt: str, latents: torch.Tensor) -> Frames:
        """What the pipeline makes of some noise, (F, H, W, 3) in [0, 1]."""
        count = self.frames(latents.shape[2])
        call = {**self.call, "num_frames": count, "latents": latents, "output_type": "np"}
        return np.asarray(self.pipe(prompt, generator=torch.Generator().manual_seed(0), **call).frames[0])

    def divided(self, prompt: str, noise: torch.Tensor) -> Frames:
        """Clips, with the technique's defaults."""
        return self.in_clips(prompt, noise)

    def windowed(self, prompt: str, noise: torch.Tensor) -> Frames:
        """The same without frames of the whole video."""
        return self.in_clips(prompt, noise, global_frames=0)

    def early_global(self, prompt: str, noise: torch.Tensor) -> Frames:
        """Frames of the whole video rule the first fifth of the steps, and the window is half as long."""
        halo = self.trained // 4
        own = {"halo": halo, "global_frames": self.trained - 2 * halo - 1}
        return self.in_clips(prompt, noise, **own, bias=10.0, switch=0.93)

    def unbiased(self, prompt: str, noise: torch.Tensor) -> Frames:
        """Twice the trained length of frames of the whole video, no scope favoured in any step."""
        return self.in_clips(prompt, noise, global_frames=2 * self.trained, bias=0.0)

    def in_clips(self, prompt: str, noise: torch.Tensor, **options: float) -> Frames:
        """A video in clips."""
        with hasten.accelerate(self.pipe, {"video_infinity": {"clips": len(self.clips), **options}}):
            return self.make(prompt, noise)

    def extended(self, prompt: str, noise: torch.Tensor) -> Frames:
        """The stock pipeline."""
        return self.make(prompt, noise)

    def independent(self, prompt: str, noise: torch.Tensor) -> Frames:
        """Every clip alone."""
        return np.concatenate([self.make(prompt, noise[:, :, c.start : c.stop]) for c in self.clips])

    def seams(self, way: str) -> list[int]:
        """Number of the first frame of every clip but the first."""
        lengths = [len(clip) for clip in self.clips]
        if way == "independent":
            return list(np.cumsum([self.frames(n) for n in lengths]))[:-1]
        return [self.frames(clip.start) for clip in self.clips[1:]]


def features() -> Callable[[Frames], torch.Tensor]:
    """Unit features (F, D) of frames, by the contrastive model's vision tower."""
    from transformers import CLIPModel

    from hasten_miniatures.contrastive import preprocess

    folder = mini.path("mini/t2i-dit").with_name("scorers") / "clip"
    model: Any = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()

    def compute(frames: Frames) -> torch.Tensor:
        middles = np.stack([centred(frame)[0] for frame in frames])
        pictures = torch.from_numpy(middles).float().permute(0, 3, 1, 2) * 2 - 1
        pooled = model.vision_model(pixel_values=preprocess(pictures)).pooler_output
        return torch.nn.functional.normalize(model.visual_projection(pooled), dim=-1)

    return compute


def coded_shapes(vae: Any, side: int, count: int = 24) -> float:
    """Share of the shapes of real moving scenes that the parser knows again after the autoencoder coded them."""
    scenes = [scene for scene in (sample_moving_scene(991, i) for i in range(2 * count)) if scene.moves][
        :count
    ]
    videos = render_videos(scenes, 991, 0, side, WINDOW + 1)
    if "scale_factor_temporal" not in vae.config:  # pictures, one by one
        pictures = vae(videos.transpose(1, 2).flatten(0, 1)).sample
        coded = pictures.unflatten(0, (count, WINDOW + 1)).transpose(1, 2)
    else:
        coded = vae(videos).sample
    frames = ((coded.clamp(-1, 1) + 1) / 2).permute(0, 2, 3, 4, 1).double().numpy()
    captions = [scene.caption() for scene in scenes]
    return VideoParser().score(list(frames[:, :WINDOW]), captions).by_attribute()["shape"]


def measured(
    video: Frames,
    prompt: str,
    seams: list[int],
    classifier: VideoClassifier,
    embed: Callable[[Frames], torch.Tensor],
) -> Any:
    """Figures of one video."""
    windows = [video[first : first + WINDOW] for first in range(0, len(video) - WINDOW + 1, WINDOW)]
    prompts = [prompt] * len(windows)
    parsed = VideoParser().score(windows, prompts).verdicts
    motion = [{"motion 1": verdict["motion 1"]} for verdict in parsed]
    classified = classifier.score(windows, prompts).verdicts
    unit = embed(video)
    seen = read_video(video)
    path = np.stack([seen.x, seen.y])
    steps = np.abs((np.diff(path) + 0.5) % 1 - 0.5).max(0)
    changes = np.abs(np.diff(video, axis=0)).mean((1, 2, 3))
    inside = np.ones(len(changes), bool)
    inside[[seam - 1 for seam in seams]] = False
    return {
        "motion": shares(motion),
        "classifier": shares({**moved, **others} for moved, others in zip(motion, classified)),
        "parser": shares(parsed),
        "similarity": [float(value) for value in unit @ unit[0]],
        "seam_change": float(np.median(changes[~inside]) / np.median(changes[inside])),
        "seam_step": float(np.nanmedian(steps[~inside]) / max(float(np.nanmedian(steps[inside])), 1e-3)),
    }


def shares(verdicts: Iterable[Mapping[str, bool]]) -> list[float]:
    """Share of right attributes of each window."""
    return [sum(verdict.values()) / len(verdict) for verdict in verdicts]


def strip(video: Frames, path: Path, columns: int = 18) -> None:
    """Frames at equal distances as one picture."""
    chosen = np.linspace(0, len(video) - 1, columns).round().astype(int)
    picture = np.concatenate([video[index] for index in chosen], 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((picture * 255).round().astype(np.uint8)).save(path)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over prompts."""
    along = np.array([row["similarity"] for row in rows]).mean(0)
    distances = [1, *range(8, len(along), 8)]
    figures: dict[str, Any] = {"motion": float(np.mean([row["motion"] for row in rows]))}
    for judge in ("classifier", "parser"):
        windows = np.array([row[judge] for row in rows])
        figures[judge] = {
            "attributes": float(windows.mean()),
            "good_windows": float((windows >= 0.8).mean()),
            "by_window": windows.mean(0).round(3).tolist(),
        }
    return figures | {
        "similarity": {str(d): round(float(along[d]), 3) for d in distances},
        "seam_change": statistics.median(row["seam_change"] for row in rows),
        "seam_step": statistics.median(row["seam_step"] for row in rows),
    }


@torch.no_grad()
def main() -> None:
    """Make, measure, write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--times", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--out", type=Path, default=Path("long-videos"))
    given = parser.parse_args()
    ways = Ways(given.model, given.times, given.steps, given.guidance_scale)
    coded = coded_shapes(ways.pipe.vae, ways.call["height"])
    classifier, embed = VideoClassifier(), features()
    name = product_name(given.model)
    asked = [text for text in mini.prompts(4 * given.prompts, 7, model=name) if "moving" in text]
    target = HERE / f"video_infinity_{name}.json"
    for way in given.ways:
        rows = []
        for index, prompt in enumerate(asked[: given.prompts]):
            video = getattr(ways, way)(prompt, ways.noise(index))
            strip(video, given.out / f"{index}-{way}.png")
            rows.append(measured(video, prompt, ways.seams(way), classifier, embed))
        before = json.loads(target.read_text("utf-8"))["ways"] if target.exists() else {}
        found = before | {way: summary(rows)}
        document = {
            "model": f"mini/{name}",
            "times": given.times,
            "prompts": given.prompts,
            "steps": given.steps,
            "guidance_scale": ways.call["guidance_scale"],
            "coded_shapes": coded,
        }
        made = {way: found[way] for way in WAYS if way in found}
        document |= {"frames": len(video), "machine": describe_machine(), "ways": made}
        target.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
