"""Metrics for videos of the moving-scenes data set. Like those for its pictures, comparable with nothing published."""

from __future__ import annotations

from hasten.eval.metric import Batch, Need
from hasten.eval.metrics.miniature import AttributeMetric, ClassifiedMetric
from hasten.pipelines.mini.scoring import AttributeScores
from hasten_miniatures.motion import VideoClassifier, VideoParser

__all__ = ["Motion", "MovingClassifier", "MovingParser"]

_VIDEO: frozenset[Need] = frozenset({"image", "prompt", "video"})


def _answers(scorer: VideoParser | VideoClassifier, batch: Batch, *, motion: bool = False) -> AttributeScores:
    """Answers to the questions about motion, or to all others, video by video."""
    assert batch.prompts is not None
    videos = batch.images.unflatten(0, (-1, batch.frames)).permute(0, 1, 3, 4, 2).numpy()
    verdicts = scorer.score(videos, batch.prompts[:: batch.frames]).verdicts
    return AttributeScores(
        tuple({k: v for k, v in one.items() if k.startswith("motion") == motion} for one in verdicts)
    )


class MovingParser(AttributeMetric):
    """Share of the requested attributes, except motion, that are right in three quarters of the frames."""

    name = "mini_video_parser"
    needs = _VIDEO
    reader = "video parser"

    def _read(self, batch: Batch) -> AttributeScores:
        return _answers(VideoParser(), batch)


class Motion(AttributeMetric):
    """Share of the videos with the requested motion, or none if none is requested."""

    name = "mini_motion"
    needs = _VIDEO
    reader = "video parser"

    def _read(self, batch: Batch) -> AttributeScores:
        return _answers(VideoParser(), batch, motion=True)


class MovingClassifier(ClassifiedMetric):
    """Share of the requested attributes, except motion and place, that a classifier reads from the frames."""

    name = "mini_video_classifier"
    needs = _VIDEO
    preprocessing = "object rolled to the middle, area 64, [-1, 1]"

    def _read(self, batch: Batch) -> AttributeScores:
        return _answers(VideoClassifier(self._judge), batch)
