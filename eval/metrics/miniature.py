"""Metrics for pictures of the captioned-scenes data set, from the miniature scorers. They need no download.

Their figures can't be compared with a published FID, CLIP score or CMMD (``published`` is false).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.eval.fingerprint import Fingerprint, hash_weights
from hasten.eval.metric import Batch, Features, Need, SampleMetric, SetMetric
from hasten.eval.metrics.alignment import ClipScore
from hasten.eval.metrics.sets import Cmmd, Fid
from hasten.eval.networks.clip import ClipNetwork
from hasten.eval.pictures.images import from_float
from hasten.extend import CheckpointError
from hasten.weights import load_checked

if TYPE_CHECKING:
    from hasten.eval.networks.features import FeatureNetwork
    from hasten.pipelines.mini.scoring import AttributeScorer, AttributeScores, PixelParser

__all__ = [
    "AttributeMetric",
    "ClassifiedMetric",
    "Classifier",
    "Frechet",
    "Mmd",
    "Parser",
    "TextImage",
    "bundled",
    "true_renders",
]

_REFERENCE_SEED = 2**43
"""Stream of the jitter of reference renders; nothing is trained on it."""

_PROMPTS_AT_ONCE = 16
"""Number of prompts whose true renders are in memory together."""

RENDERS_PER_PROMPT = 8
"""True renders of each prompt in the reference set."""


def bundled(kind: str) -> Path:
    """Folder of a packaged scorer, ``"judge"`` or ``"clip"``."""
    from hasten.pipelines import mini

    return Path(mini.__file__).with_name("weights") / "scorers" / kind


class MiniatureClip(ClipNetwork):
    """The miniature contrastive model, with the preprocessing it was trained with."""

    def preprocess(self, images: Tensor) -> Tensor:
        """uint8 ``[N, 3, H, W]`` to [-1, 1], area-averaged to the model's size."""
        pixels = images.to(torch.float32) / 127.5 - 1
        size = (self.image_size, self.image_size)
        return pixels if pixels.shape[-2:] == size else F.interpolate(pixels, size=size, mode="area")

    @property
    def preprocessing(self) -> str:
        """Name of the preprocessing for fingerprints."""
        return f"area {self.image_size}, [-1, 1]"


@cache
def _load_clip(folder: Path) -> MiniatureClip:
    from transformers import CLIPModel, PreTrainedTokenizerFast

    if not (folder / "model.safetensors").exists():
        raise CheckpointError(
            f"no miniature contrastive model at {folder}; make one with `hasten mini train text-image` and "
            "`hasten mini export scorers`"
        )
    remedy = "reinstall hasten, or export the scorers again"

    def network() -> CLIPModel:
        # A tensor of another shape is named by the check; transformers would refuse it without saying which.
        return CLIPModel.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, ignore_mismatched_sizes=True
        )

    def words() -> PreTrainedTokenizerFast:
        found: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
            folder, local_files_only=True
        )
        return found

    model, tokenizer = load_checked(network, folder, remedy), load_checked(words, folder, remedy)
    return MiniatureClip(model.eval(), tokenizer, name="miniature contrastive model")


def _clip(folder: str | Path | None) -> MiniatureClip:
    return _load_clip(Path(folder) if folder is not None else bundled("clip"))


def _features(folder: str | Path | None) -> FeatureNetwork:
    return _clip(folder).as_feature_network()


class AttributeMetric(SampleMetric):
    """Right answers of asked ones, prompt by prompt; its figure is the ratio of their sums.

    Class attribute ``reader`` says in fingerprints what reads the answers.
    """

    needs: frozenset[Need] = frozenset({"image", "prompt"})
    higher_is_better = True
    published = False
    tolerance = 0.02
    reader = ""

    def _read(self, batch: Batch) -> AttributeScores:
        """The answers that the pictures give to the questions of their prompts."""
        raise NotImplementedError

    def embed(self, batch: Batch) -> Features:
        """``{"right": float64 [samples], "asked": float64 [samples]}``."""
        self._require(batch)
        scores = self._read(batch)
        return {
            "right": torch.tensor(scores.right, dtype=torch.float64),
            "asked": torch.tensor(scores.asked, dtype=torch.float64),
        }

    def score(self, features: Features) -> Tensor:
        """Share of right answers of each prompt."""
        return features["right"] / features["asked"]

    def counts(self, features: Features) -> tuple[Tensor, Tensor]:
        """Right answers and questions asked, by prompt."""
        return features["right"], features["asked"]

    def fingerprint(self) -> Fingerprint:
        """What reads the answers."""
        return Fingerprint(self.name, self.version, variant=self.reader)


class ClassifiedMetric(AttributeMetric):
    """Attributes as the miniature classifier reads them.

    Class attribute ``preprocessing`` says in fingerprints how pictures become its input.

    Args:
        folder: of the classifier; the bundled one unless given.
    """

    preprocessing = "area 64, [-1, 1]"

    def __init__(self, folder: str | Path | None = None) -> None:
        from hasten.pipelines.mini.judge import load_judge

        super().__init__()
        self._judge = load_judge(Path(folder) if folder is not None else bundled("judge"))

    def fingerprint(self) -> Fingerprint:
        """Weights of the classifier."""
        return Fingerprint(
            self.name,
            self.version,
            network="miniature attribute classifier",
            weights=hash_weights(self._judge),
            preprocessing=self.preprocessing,
        )


class Classifier(ClassifiedMetric):
    """Share of the attributes asked for, as a classifier reads them from the picture.

    Args:
        folder: of the classifier; the bundled one unless given.
    """

    name = "mini_classifier"

    def _read(self, batch: Batch) -> AttributeScores:
        from hasten.pipelines.mini.scoring import AttributeScorer

        return _answers(AttributeScorer(self._judge), batch)


class Parser(AttributeMetric):
    """Share of the attributes asked for, read from the pixels by rules: no training that could flatter."""

    name = "mini_parser"
    reader = "pixel parser"

    def _read(self, batch: Batch) -> AttributeScores:
        from hasten.pipelines.mini.scoring import PixelParser

        return _answers(PixelParser(), batch)


def _answers(scorer: AttributeScorer | PixelParser, batch: Batch) -> AttributeScores:
    from PIL import Image

    assert batch.prompts is not None
    pictures = [Image.fromarray(pixels) for pixels in batch.images.permute(0, 2, 3, 1).numpy()]
    return scorer.score(pictures, batch.prompts)


class TextImage(ClipScore):
    """Cosine of picture and prompt in the miniature contrastive model, in [-1, 1].

    Args:
        folder: of the model; the bundled one unless given.
    """

    name = "mini_text_image"
    published = False

    def __init__(self, folder: str | Path | None = None) -> None:
        super().__init__(_clip(folder), "cosine")


class _TrueRenders(SetMetric):
    """A metric whose reference set is drawn from the prompts."""

    needs: frozenset[Need] = frozenset({"image", "prompt"})
    published = False

    def own_reference(self, prompts: Sequence[str], side: int) -> Iterator[Tensor]:
        """What the prompts describe: batches uint8 ``[M, 3, side, side]``, 8 pictures of each prompt."""
        for first in range(0, len(prompts), _PROMPTS_AT_ONCE):
            yield true_renders(prompts[first : first + _PROMPTS_AT_ONCE], side, first)


class Frechet(_TrueRenders, Fid):
    """Frechet distance to true renders in the miniature's features.

    Args:
        folder: of the contrastive model; the bundled one unless given.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        super().__init__(_features(folder))
        self.name = "mini_frechet"


class Mmd(_TrueRenders, Cmmd):
    """Unbiased kernel distance to true renders in the miniature's features, at the bandwidth of the data.

    Args:
        folder: of the contrastive model; the bundled one unless given.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        super().__init__(_features(folder), sigma=None)
        self.name = "mini_mmd"


def true_renders(prompts: Sequence[str], side: int, first: int = 0) -> Tensor:
    """What the prompts describe, drawn by the data set itself, each with several jitters: uint8 ``[8 N, 3, H, H]``.

    Args:
        prompts: captions of the data set.
        side: of the pictures, in pixels.
        first: number of the first prompt in the whole list; the jitter depends on it.

    Raises:
        ConfigError: if a prompt is not a caption of the data set.
    """
    from hasten.pipelines.mini.render import render_scenes
    from hasten.pipelines.mini.scenes import parse_caption

    scenes = [parse_caption(prompt) for prompt in prompts for _ in range(RENDERS_PER_PROMPT)]
    return from_float(
        ((render_scenes(scenes, _REFERENCE_SEED, first * RENDERS_PER_PROMPT, side) + 1) / 2).clamp(0, 1)
    )
