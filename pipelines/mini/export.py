"""From runs to the folders that are shipped: half precision, stock layout, a README made of the runs' records."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from hasten._errors import ConfigError
from hasten.pipelines.mini._models import load_folder
from hasten.pipelines.mini.evaluate import Row, evaluate
from hasten.pipelines.mini.provenance import read_chain, readme
from hasten.pipelines.mini.runs import load_autoencoder, load_text_tower, load_trained

__all__ = ["EXPORTS", "export", "figures_table"]

EXPORTS = ("t2i-dit", "scorers")
"""What can be exported."""

_PIPELINE_TEXT = """
A stock `StableDiffusion3Pipeline` for captioned scenes of one to three simple objects, trained by `hasten` from 64 to
256 image tokens. Both CLIP slots hold the same text tower, the one of the bundled contrastive model; there is no T5.

```python
pipe = hasten.load("mini/t2i-dit")
image = pipe(
    "a large red circle on the left and a small blue star on the right on a white background",
    **hasten.pipelines.mini.recommended_call("mini/t2i-dit"),
).images[0]
```

With diffusers alone: `StableDiffusion3Pipeline.from_pretrained(folder, text_encoder_3=None, tokenizer_3=None)`.
`max_sequence_length=0` drops the zero tokens that stand for the missing T5; the pipeline's default works too, slower.
Figures of miniatures show trends and are not comparable with published ones.
"""
_SCORERS_TEXT = """
`clip` is a stock `CLIPModel` trained on captions and pictures of the scenes data set: text encoder of the miniature
pipelines, and feature network for quality metrics on their pictures. `judge` is the attribute classifier of
`hasten.pipelines.mini.scoring.AttributeScorer`.
"""


def export(
    name: str,
    root: Path,
    folder: Path,
    *,
    prompts: int = 0,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Row]:
    """Write the shipped folder of ``name`` from the runs in ``root``.

    Args:
        name: a key of :data:`EXPORTS`.
        root: folder of all runs.
        folder: where to write; files of the same name are replaced.
        prompts: prompts per split and size to measure the exported pipeline with; 0 for none.
        progress: called with the number of pictures made.

    Returns:
        The measured rows, also in the README.

    Raises:
        ConfigError: for an unknown name.
        CheckpointError: if a run is missing or not finished.
    """
    if name not in EXPORTS:
        raise ConfigError(f"{name!r} cannot be exported; there are {', '.join(EXPORTS)}")
    if name == "scorers":
        _export_scorers(root, folder)
        return []
    return _export_pipeline(root, folder, prompts, progress)


def _export_pipeline(root: Path, folder: Path, prompts: int, progress: Callable[[int], None]) -> list[Row]:
    from hasten.pipelines.mini.sheets import CALL
    from hasten.pipelines.mini.t2i_dit import assemble, build_transformer

    vae = load_autoencoder(root)
    settings = {
        "schema": 1,
        "call": CALL,
        "absent": ["text_encoder_3", "tokenizer_3"],
        "spectrum": _spectrum(vae),
    }
    denoiser = load_trained("t2i-dit", root, build_transformer())
    pipe = assemble(vae, load_text_tower(root), denoiser)
    pipe.to(dtype=torch.float16).save_pretrained(folder)
    _name_tokenizers(folder)
    (folder / "hasten.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")
    rows: list[Row] = []
    if prompts:
        rows = evaluate(load_folder(folder), CALL, _scorers(root), prompts, progress=progress)
    runs = ("autoencoder", "text-image", "t2i-dit")
    _write_readme(folder, root, "mini/t2i-dit", _PIPELINE_TEXT, runs, figures_table(rows))
    return rows


def _name_tokenizers(folder: Path) -> None:
    """Name the tokenizers' class as every supported transformers knows it; version 5 writes a name only it has."""
    for file in (*folder.glob("model_index.json"), *folder.rglob("tokenizer_config.json")):
        text = file.read_text("utf-8")
        file.write_text(text.replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"'), "utf-8")


def _export_scorers(root: Path, folder: Path) -> None:
    from hasten.pipelines.mini.contrastive import build_clip, export_clip
    from hasten.pipelines.mini.judge import Judge, export_judge

    export_clip(load_trained("text-image", root, build_clip()), folder / "clip")
    export_judge(load_trained("judge", root, Judge()), folder / "judge")
    _name_tokenizers(folder / "clip")
    _write_readme(folder, root, "mini/scorers", _SCORERS_TEXT, ("text-image", "judge"), [])


def figures_table(rows: Sequence[Row]) -> list[str]:
    """Measured rows as a Markdown table, one line per split and size."""
    if not rows:
        return []
    judges = list(dict.fromkeys(row.judge for row in rows))
    lines = [
        f"Share of the attributes asked for that are in the picture, {rows[0].prompts} prompts a line, "
        "95 % interval over prompts.",
        "",
        "| prompts | pixels | bar | " + " | ".join(judges) + " |",
        "|---|---|---|" + "---|" * len(judges),
    ]
    for split, pixels in dict.fromkeys((row.split, row.pixels) for row in rows):
        cells = [row for row in rows if (row.split, row.pixels) == (split, pixels)]
        shares = " | ".join(f"{row.right:.3f} [{row.low:.3f}, {row.high:.3f}]" for row in cells)
        bar = "none" if cells[0].bar is None else f"{cells[0].bar:.2f}"
        kind = "trained combinations" if split == "train" else "held-out combinations"
        lines.append(f"| {kind} | {pixels} | {bar} | {shares} |")
    return lines


def _scorers(root: Path) -> dict[str, Any]:
    from hasten.pipelines.mini.judge import Judge
    from hasten.pipelines.mini.scoring import AttributeScorer, PixelParser

    judge = load_trained("judge", root, Judge())
    return {"classifier": AttributeScorer(judge), "parser": PixelParser()}


@torch.no_grad()
def _spectrum(vae: Any, scenes: int = 256) -> dict[str, float]:
    """``A`` and ``beta`` of the normalised latents of full-size scenes."""
    from hasten.pipelines.mini.autoencoder import encode
    from hasten.pipelines.mini.batches import scene_batch
    from hasten.pipelines.mini.training import step_generator
    from hasten.schedules.spectrum import fit_spectrum

    generator = step_generator(2, 0)
    latents = [encode(vae, scene_batch(32, 128, generator)[1]) for _ in range(scenes // 32)]
    law = fit_spectrum(torch.cat(latents))
    return {"A": law.amplitude, "beta": law.exponent, "images": scenes, "side": 128}


def _write_readme(
    folder: Path, root: Path, title: str, text: str, runs: Sequence[str], figures: Sequence[str]
) -> None:
    weights = list(folder.rglob("*.safetensors"))
    for file in weights:
        file.chmod(0o644)  # they come out readable by their owner alone
    size = sum(file.stat().st_size for file in weights)
    page = readme(title, text, [r for run in runs for r in read_chain(root / run)], figures, size)
    (folder / "README.md").write_text(page, "utf-8")
