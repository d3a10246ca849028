"""Where prompts go, by what they ask for."""

import json

import pytest

from hasten.plugins.aptp.bundle import Bundle
from hasten.plugins.aptp.make.traffic import kind_of, save_traffic, traffic

from .conftest import PROMPTS


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        (PROMPTS[0], "one object in the centre or at a side"),
        (PROMPTS[4], "one object in a corner"),
        (PROMPTS[5], "one object in the centre or at a side"),
        (PROMPTS[1], "two or three equal objects"),
        (PROMPTS[2], "two different objects, with places"),
        ("an astronaut", "up to 8 words"),
        ("word " * 9, "9 to 20 words"),
        ("word " * 21, "more than 20 words"),
    ],
)
def test_prompts_are_told_apart_by_what_they_ask_for(prompt, kind):
    assert kind_of(prompt) == kind


def test_shares_and_costs_are_those_of_the_routing(scenes_pipe, bundle_folder, tmp_path):
    bundle = Bundle.load(bundle_folder)
    rows = traffic(scenes_pipe, bundle, [*PROMPTS, "an astronaut riding a horse"])
    assert [row.macs_share for row in rows[:-1]] == sorted(row.macs_share for row in rows[:-1])
    whole = rows[-1]
    assert (whole.kind, whole.prompts) == ("all", 7)
    for row in rows:
        assert sum(row.shares) == pytest.approx(1)
    costs = [expert.macs_share for expert in bundle.manifest.experts]
    assert whole.macs_share == pytest.approx(
        sum(share * cost for share, cost in zip(whole.shares, [*costs, 1.0]))
    )
    assert whole.shares[-1] == pytest.approx(1 / 7)  # the unfamiliar one
    save_traffic(rows, tmp_path)
    assert json.loads((tmp_path / "traffic.json").read_text())[-1]["kind"] == "all"
