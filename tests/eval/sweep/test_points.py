"""Which settings nobody should choose, which positions of a dial are run, and the picture of both."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from hasten.commands import Config
from hasten.eval.compare.engine import Arm
from hasten.eval.report import sweep as pictures
from hasten.eval.report.drawing import PRINT, drawing
from hasten.eval.report.sweep import draw_for_page, save_pictures
from hasten.eval.sweep.arms import plain_settings, technique_settings
from hasten.eval.sweep.points import Curve, Point, Quantity, dominated, sweep_fields

PARSER = Quantity("parser", True)


def estimate(value: float, spread: float = 0.0) -> dict[str, Any]:
    return {"value": value, "low": value - spread, "high": value + spread}


def point(name: str, seconds: float, quality: float, label: str = "") -> Point:
    return Point(name, label or name, estimate(seconds, seconds / 50), {"parser": estimate(quality, 0.03)})


PLAIN = Curve(
    "plain, Euler",
    tuple(point(f"{n} steps", 0.14 * n, min(0.93, 0.45 + 0.05 * n), str(n)) for n in (14, 10, 7, 5, 4)),
    plain=True,
)
FAST = Curve(
    "accelerated, bottleneck.delta (14 steps)",
    tuple(
        point(f"delta={d:g}", s, q, f"{d:g}")
        for d, s, q in ((0.02, 1.4, 0.92), (0.089, 1.0, 0.91), (0.2, 0.8, 0.9), (0.4, 0.65, 0.8))
    ),
)


def test_a_point_is_dominated_by_one_as_fast_and_better_or_as_good_and_faster() -> None:
    same = [point("a", 1.0, 0.9), point("b", 1.0, 0.9), point("slow", 2.0, 0.9), point("bad", 1.0, 0.8)]
    curves = [Curve("x", tuple(same)), Curve("y", (point("fast", 0.5, 0.5),))]
    assert dominated(curves, "parser", higher_is_better=True) == {"slow", "bad"}
    assert dominated(curves, "parser", higher_is_better=False) == {"a", "b", "slow", "bad"}
    assert dominated(curves, "another", higher_is_better=True) == frozenset()


def test_fields_survive_json() -> None:
    fields = sweep_fields([PLAIN, FAST], [PARSER], prompts=3)
    assert [Curve.of(curve) for curve in fields["curves"]] == [PLAIN, FAST]
    assert Quantity(**fields["quantities"][0]) == PARSER
    assert "14 steps" in fields["dominated"]["parser"]  # 10 are as good here


def test_plain_rows_are_steps_times_solvers() -> None:
    found = plain_settings(8, (5, 4), ["UniPC"], "Euler")
    assert [(s.arm.steps, s.arm.solver, s.curve) for s in found] == [
        (8, None, "plain, Euler"),
        (5, None, "plain, Euler"),
        (4, None, "plain, Euler"),
        (8, "UniPC", "plain, UniPC"),
        (5, "UniPC", "plain, UniPC"),
        (4, "UniPC", "plain, UniPC"),
    ]
    assert found[0].arm.role == "baseline"


def test_a_dial_is_turned_with_the_configured_position_among_its_own() -> None:
    arm = Arm("accelerated", "candidate", 8, Config.of({"bottleneck": {"delta": 0.1}}))
    found = list(technique_settings(arm))
    assert [setting.label for setting in found] == ["0.02", "0.0423", "0.0894", "0.1", "0.189", "0.4"]
    assert {setting.curve for setting in found} == {"accelerated, bottleneck.delta (8 steps)"}
    deltas = [setting.arm.config.techniques[0].options.delta for setting in found]  # type: ignore[union-attr]
    assert deltas == [float(setting.label) for setting in found]


def test_every_technique_of_a_configuration_has_a_curve_and_others_stay_as_they_are() -> None:
    config = Config.of({"bottleneck": {}, "guidance_interval": {"stop": 0.2}})
    found = list(technique_settings(Arm("both", "candidate", 8, config)))
    assert {setting.curve.partition(" (")[0] for setting in found} == {
        "both, bottleneck.delta",
        "both, guidance_interval.stop",
    }
    for setting in found:
        first, second = setting.arm.config.techniques  # type: ignore[union-attr]
        assert (first.options.delta == 0.2) or (second.options.stop == 0.2)  # type: ignore[attr-defined]


def test_a_configuration_without_a_dial_is_one_point() -> None:
    arm = Arm("long", "candidate", 8, Config.of(["video_infinity"]))
    assert [setting.arm for setting in technique_settings(arm)] == [arm]


def labels_of(figure: Figure) -> list[Any]:
    return [text for text in figure.axes[0].texts if text.get_text()]


def test_labels_cover_neither_each_other_nor_a_marker() -> None:
    with drawing("test", PRINT):
        figure = pictures._figure([PLAIN, FAST], PARSER, PRINT)
        figure.draw_without_rendering()
        boxes = [label.get_window_extent() for label in labels_of(figure)]
        axes = figure.axes[0]
        for one, other in combinations(boxes, 2):
            assert not one.overlaps(other)
        for curve in (PLAIN, FAST):
            for p in curve.points:
                x, y = axes.transData.transform((p.seconds["value"], p.figures["parser"]["value"]))
                assert not any(box.contains(x, y) for box in boxes)
    assert {label.get_text() for label in labels_of(figure)} >= {"0.2", "0.089"}
    assert "7" not in {label.get_text() for label in labels_of(figure)}  # dominated


def test_pictures_are_written_and_the_page_gets_its_own_colours(tmp_path: Path) -> None:
    written = save_pictures([PLAIN, FAST], PARSER, tmp_path)
    assert [path.name for path in written] == ["sweep-parser.png", "sweep-parser.svg"]
    with Image.open(written[0]) as image:
        assert image.width > 700
    text = draw_for_page([PLAIN, FAST], PARSER)
    assert "var(--row-1)" in text
    assert not re.search(r"#01010|#0202", text)
    assert "plain, Euler" in text


def test_a_margin_is_a_line_among_changes() -> None:
    quantity = Quantity("parser", True, change=True, margin=0.05)
    with drawing("test", PRINT):
        figure = pictures._figure([PLAIN], quantity, PRINT)
    lines = [list(line.get_ydata()) for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert [-0.05, -0.05] in lines


@pytest.mark.parametrize("count", [1, 2])
def test_few_points_are_drawn_too(count: int) -> None:
    curve = Curve("one", PLAIN.points[:count], plain=True)
    assert "<svg" in draw_for_page([curve], PARSER)
