"""Metrics for videos of the moving-scenes data set. They are not comparable with published figures."""

from __future__ import annotations

from typing import Any

from hasten.eval.fingerprint import Fingerprint, hash_weights
from hasten.eval.metric import Batch, Need
from hasten.eval.metrics.miniature import AttributeMetric, bundled
from hasten.pipelines.mini.scoring import AttributeScores
from hasten_miniatures.motion import VideoClassifier, VideoParser

__all__ = ["Motion", "MovingClassifier", "MovingParser"]


class MovingMetric(AttributeMetric):
    """Share of the requested attributes per video, except motion, which is a separate metric."""

    needs: frozenset[Need] = frozenset({"image", "prompt", "video"})

    def _read(self, batch: Batch) -> AttributeScores:
        assert batch.prompts is not None
        videos = batch.images.unflatten(0, (-1, batch.frames)).permute(0, 1, 3, 4, 2).numpy()
        scores: AttributeScores = self._scorer().score(videos, batch.prompts[:: batch.frames])
        return AttributeScores(
            tuple({k: v for k, v in one.items() if self._wants(k)} for one in scores.verdicts)
        )

    def _wants(self, question: str) -> bool:
        return not question.startswith("motion")


class MovingParser(MovingMetric):
    """Share of the requested attributes, except motion, that are right in three quarters of the frames."""

    name = "mini_video_parser"

    def _scorer(self) -> Any:
        return VideoParser()

    def fingerprint(self) -> Fingerprint:
        """The parser has no weights."""
        return Fingerprint(self.name, self.version, variant="video parser")


class Motion(MovingParser):
    """Share of the videos with the requested motion, or none if none is requested."""

    name = "mini_motion"

    def _wants(self, question: str) -> bool:
        return question.startswith("motion")


class MovingClassifier(MovingMetric):
    """Share of the requested attributes, except motion and place, that a classifier reads from the frames."""

    name = "mini_video_classifier"

    def __init__(self) -> None:
        from hasten.pipelines.mini.judge import load_judge

        super().__init__()
        judge = load_judge(bundled("judge"))
        self._weights = hash_weights(judge)
        self._judge = VideoClassifier(judge)

    def _scorer(self) -> Any:
        return self._judge

    def fingerprint(self) -> Fingerprint:
        """Weights of the classifier."""
        return Fingerprint(
            self.name,
            self.version,
            network="miniature attribute classifier",
            weights=self._weights,
            preprocessing="object rolled to the middle, area 64, [-1, 1]",
        )
