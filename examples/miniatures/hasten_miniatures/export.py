"""Export of finished runs: half precision, stock layout, and a README from the records of the runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

import torch

from hasten import ConfigError
from hasten.commands import Placement, choose_place, load_quietly
from hasten_miniatures.evaluate import Row
from hasten_miniatures.product import Product
from hasten_miniatures.provenance import read_chain, readme, ship_chain
from hasten_miniatures.runs import bundled_in, load_trained

__all__ = ["EXPORTS", "PRODUCTS", "export", "figures_table", "product"]

PRODUCTS = {
    "t2i-dit": "t2i_dit_1024",
    "t2i-dit-4096": "t2i_dit_4096",
    "t2i-unet": "t2i_unet",
    "t2v-dit": "t2v_dit",
    "t2v-unet": "t2v_unet",
    "var": "var_product",
    "infinity": "infinity_product",
}
"""Pipeline -> module of this package with its ``PRODUCT``."""
EXPORTS = (*PRODUCTS, "scorers", "t2i-outlines")
"""What can be exported."""

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
    place: Placement | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> list[Row]:
    """Export ``name`` from the runs in ``root``.

    Args:
        name: a key of :data:`EXPORTS`.
        root: folder of all runs.
        folder: output folder; existing files are replaced.
        prompts: prompts per split and size for the evaluation of the exported pipeline; 0 for none.
        place: device and number format of the evaluation; by default those of this machine.
        progress: called with the number of new pictures.

    Returns:
        The rows of the evaluation, which are also in the README.

    Raises:
        ConfigError: the name is unknown.
        CheckpointError: a run is missing or not finished.
    """
    if name not in EXPORTS:
        raise ConfigError(f"{name!r} cannot be exported; there are {', '.join(EXPORTS)}")
    if name not in PRODUCTS:
        (_export_scorers if name == "scorers" else _export_outlines)(root, folder)
        return []
    made = product(name)
    _save(name, root, folder)
    rows = []
    if prompts:
        pipe = load_quietly(str(folder), place or choose_place(None, None, None))
        rows = made.measure(pipe, made.call, prompts, 0, progress)
    _write_readme(folder, root, f"mini/{name}", made.text, made.runs, figures_table(rows))
    ship_chain(read_chain(root / made.runs[-1]), folder)
    return rows


def _save(name: str, root: Path, folder: Path) -> None:
    """Write the pipeline in half precision, and its ``hasten.json``."""
    made = product(name)
    made.assemble(root).to(dtype=torch.float16).save_pretrained(folder)
    _name_tokenizers(folder)
    _forget_origins(folder)
    settings = {"schema": 1, "product": name, "call": dict(made.call), **made.settings(root)}
    (folder / "hasten.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def product(name: str) -> Product:
    """The product ``name``, a key of :data:`PRODUCTS`."""
    shipped: Product = import_module(f"hasten_miniatures.{PRODUCTS[name]}").PRODUCT
    return shipped


def _forget_origins(folder: Path) -> None:
    """Remove the origin of parts, which is a path on this machine."""
    for file in folder.rglob("config.json"):
        config = json.loads(file.read_text("utf-8"))
        if config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def _name_tokenizers(folder: Path) -> None:
    """Use a class name of the tokenizers that all supported versions know; transformers 5 writes a new one."""
    for file in (*folder.glob("model_index.json"), *folder.rglob("tokenizer_config.json")):
        text = file.read_text("utf-8")
        file.write_text(text.replace('"TokenizersBackend"', '"PreTrainedTokenizerFast"'), "utf-8")


def _export_scorers(root: Path, folder: Path) -> None:
    from hasten.pipelines.mini.judge import Judge
    from hasten_miniatures.contrastive import build_clip, export_clip
    from hasten_miniatures.judge import export_judge

    export_clip(load_trained("text-image", root, build_clip()), folder / "clip")
    export_judge(load_trained("judge", root, Judge()), folder / "judge")
    _name_tokenizers(folder / "clip")
    _write_readme(folder, root, "mini/scorers", _SCORERS_TEXT, ("text-image", "judge"), [])


def _export_outlines(root: Path, folder: Path) -> None:
    from hasten_miniatures.runs import load_denoiser
    from hasten_miniatures.t2i_outlines import TEXT, build_controlnet

    trained = load_trained("t2i-outlines", root, build_controlnet(load_denoiser(root)))
    trained.half().save_pretrained(folder)
    _forget_origins(folder)
    _write_readme(folder, root, "mini/t2i-outlines", TEXT, ("t2i-outlines",), [])


def figures_table(rows: Sequence[Row]) -> list[str]:
    """The rows of an evaluation as a Markdown table, one line per split and size."""
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
        bars = ["none" if row.bar is None else f"{row.bar:.2f}" for row in cells]
        bar = " / ".join(bars) if len(set(bars)) > 1 else bars[0]
        kind = "trained combinations" if split == "train" else "held-out combinations"
        lines.append(f"| {kind} | {pixels} | {bar} | {shares} |")
    return lines


def _write_readme(
    folder: Path, root: Path, title: str, text: str, runs: Sequence[str], figures: Sequence[str]
) -> None:
    weights = list(folder.rglob("*.safetensors"))
    for file in weights:
        file.chmod(0o644)  # safetensors makes them readable only by their owner
    size = sum(file.stat().st_size for file in weights)
    bundled = [run for run in runs[:-1] if not (root / run).is_dir()]
    owners = " and ".join(f"`{o}`" for o in dict.fromkeys(map(bundled_in, bundled)) if o != title)
    if owners:
        text = f"{text.rstrip()}\n\nIts {' and '.join(bundled)} parts are copies of those of {owners}."
    records = [r for run in runs if run not in bundled for r in read_chain(root / run)]
    page = readme(title, text, records, figures, size)
    (folder / "README.md").write_text(page, "utf-8")
