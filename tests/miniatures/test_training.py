import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from hasten._errors import CheckpointError, UnsupportedError
from hasten_miniatures import t2i_dit
from hasten_miniatures.checkpoints import Average
from hasten_miniatures.provenance import (
    read_chain,
    read_record,
    read_shipped_chain,
    readme,
    ship_chain,
    write_record,
)
from hasten_miniatures.schedule import Schedule
from hasten_miniatures.t2i_dit_1024 import TextToImage1024, build_transformer
from hasten_miniatures.training import Cadence, Recipe, step_generator, train
from hasten_miniatures.warm_start import load_warm_start


class Line(Recipe):
    """Fits a line, with dropout and noise, so that any slip in the generators shows."""

    name = "line"
    schedule = Schedule(steps=24, learning_rate=0.05, warmup=4, decay_from=0.5)

    def __init__(self, **changes):
        self.schedule = replace(self.schedule, **changes)
        self.previews = []

    def build(self):
        return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))

    def loss(self, model, step, generator):
        x = torch.randn(8, 3, generator=generator)
        kept = torch.rand(8, 3, generator=generator) < 0.9
        return (model(x * kept) - x.sum(1, keepdim=True)).square().mean(), {"seen": float(step)}

    def preview(self, model, folder, step):
        self.previews.append(step)
        return {"shown": 1.0}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values()))


def curve(folder):
    return [json.loads(line) for line in (folder / "curve.jsonl").read_text().splitlines()]


def without_time(records):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in records]


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(tmp_path):
    whole = train(Line(), tmp_path / "whole")
    for stop in (7, 16, None):
        parts = train(Line(), tmp_path / "parts", cadence=Cadence(stop_after=stop))
    assert same(whole, parts)
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "parts")]
    for key in ("model", "average"):
        assert all(torch.equal(states[0][key][name], states[1][key][name]) for name in states[0][key])
    assert without_time(curve(tmp_path / "whole")) == without_time(curve(tmp_path / "parts"))


def test_the_trained_autoencoder_recipe_resumes_to_the_bit_too(tmp_path):
    from hasten_miniatures.autoencoder import Autoencoder

    class Tiny(Autoencoder):
        schedule = Schedule(steps=3, learning_rate=1e-3)
        batch = 1

        def preview(self, model, folder, step):
            return {}

    whole = train(Tiny(), tmp_path / "whole")
    train(Tiny(), tmp_path / "parts", cadence=Cadence(stop_after=1))
    assert same(whole, train(Tiny(), tmp_path / "parts"))


def test_work_after_the_last_checkpoint_is_done_again_and_logged_once(tmp_path):
    class Killed(Line):
        def loss(self, model, step, generator):
            if step == 22:
                raise KeyboardInterrupt
            return super().loss(model, step, generator)

    with pytest.raises(KeyboardInterrupt):
        train(Killed(), tmp_path, cadence=Cadence(save_every=8))
    assert [record["step"] for record in curve(tmp_path)] == [10, 20]
    resumed = train(Line(), tmp_path, cadence=Cadence(save_every=8))
    assert [record["step"] for record in curve(tmp_path)] == [10, 20, 24]
    assert same(resumed, train(Line(), tmp_path / "whole"))


def test_another_seed_is_another_run(tmp_path):
    first = train(Line(), tmp_path / "a", seed=1, cadence=Cadence(stop_after=5))
    assert not same(first, train(Line(), tmp_path / "b", seed=2, cadence=Cadence(stop_after=5)))
    with pytest.raises(CheckpointError, match="belongs to another run"):
        train(Line(), tmp_path / "a", seed=2)


def test_another_learning_rate_is_another_run(tmp_path):
    train(Line(), tmp_path, cadence=Cadence(stop_after=5))
    with pytest.raises(CheckpointError, match="belongs to another run"):
        train(Line(learning_rate=0.1), tmp_path)


def test_the_length_is_free_on_the_plateau_and_fixed_after_it(tmp_path):
    train(Line(), tmp_path, cadence=Cadence(stop_after=8))
    train(Line(steps=30), tmp_path, cadence=Cadence(stop_after=20))
    with pytest.raises(CheckpointError, match="begun to fall"):
        train(Line(steps=40), tmp_path)


def test_a_finished_run_leaves_a_record_once(tmp_path):
    recipe = Line()
    train(recipe, tmp_path, seed=3, command="hasten mini train line", cadence=Cadence(preview_every=10))
    assert recipe.previews == [10, 20, 24]
    record = read_record(tmp_path)
    assert (record["recipe"], record["seed"], record["steps"], record["parameters"]) == ("line", 3, 24, 21)
    assert record["final"]["shown"] == 1.0
    train(recipe, tmp_path, seed=3)
    assert recipe.previews == [10, 20, 24]
    page = readme("mini/line", "A line.", [record], [], 42)
    assert "`hasten mini train line`" in page
    assert record["hardware"] in page


def test_a_refined_run_begins_with_the_average_of_a_finished_one(tmp_path):
    first = train(Line(), tmp_path / "first", command="hasten mini train line")
    still = Line(steps=1, learning_rate=0.0)
    assert same(first, train(still, tmp_path / "still", begin_with=load_warm_start(tmp_path / "first")))
    assert read_record(tmp_path / "still")["begun_with"]["command"] == "hasten mini train line"
    assert [record["steps"] for record in read_chain(tmp_path / "still")] == [24, 1]
    recipe = Line()
    recipe.refine()
    assert recipe.schedule.learning_rate < Line().schedule.learning_rate


def test_an_unfinished_run_is_nothing_to_begin_with(tmp_path):
    train(Line(), tmp_path / "first", cadence=Cadence(stop_after=5))
    with pytest.raises(CheckpointError, match="no finished run"):
        load_warm_start(tmp_path / "first")


def test_a_run_that_began_otherwise_is_another_run(tmp_path):
    train(Line(), tmp_path / "first", command="hasten mini train line")
    train(
        Line(),
        tmp_path / "second",
        begin_with=load_warm_start(tmp_path / "first"),
        cadence=Cadence(stop_after=3),
    )
    with pytest.raises(CheckpointError, match="belongs to another run"):
        train(Line(), tmp_path / "second")


def test_a_run_can_begin_with_a_bundled_model(tmp_path):
    begun = load_warm_start("mini/t2i-dit")
    assert begun.recipe == "t2i-dit-1024"
    assert all(weight.dtype == torch.float32 for weight in begun.weights.values())
    model, own = build_transformer(), build_transformer().get_buffer("pos_embed.pos_embed")
    TextToImage1024.inherit(None, model, begun.weights)
    state = model.state_dict()
    assert torch.equal(state["pos_embed.pos_embed"], own)
    assert torch.equal(state["proj_out.weight"], begun.weights["proj_out.weight"])
    mine = {"recipe": "line", "command": "hasten mini train line", "begun_with": begun.record}
    write_record(tmp_path, mine)
    assert read_chain(tmp_path) == [mine]


def test_what_a_shipped_model_was_made_of_goes_on_in_its_refinement(tmp_path):
    ship_chain([{"recipe": "line", "command": "first"}], tmp_path)
    begun = {"bundled": "mini/line", "command": "mini/line", "chain": read_shipped_chain(tmp_path)}
    write_record(tmp_path, {"recipe": "line", "command": "second", "begun_with": begun})
    assert [record["command"] for record in read_chain(tmp_path)] == ["first", "second"]


def test_the_positions_of_the_larger_pictures_lie_between_those_of_the_smaller():
    small = t2i_dit.build_transformer().get_buffer("pos_embed.pos_embed").view(32, 32, -1)[8:24, 8:24]
    large = build_transformer().get_buffer("pos_embed.pos_embed").view(32, 32, -1)[::2, ::2]
    torch.testing.assert_close(small, large, rtol=0, atol=1e-3)


def test_nobody_begins_with_a_model_that_is_not_there():
    with pytest.raises(UnsupportedError, match="mini/t2i-dit"):
        load_warm_start("mini/nothing")


def test_an_unfinished_run_has_no_record(tmp_path):
    train(Line(), tmp_path, cadence=Cadence(stop_after=5))
    with pytest.raises(CheckpointError, match="no finished run"):
        read_record(tmp_path)


def test_the_learning_rate_rises_stays_and_falls():
    schedule = Schedule(steps=100, learning_rate=1.0, warmup=10, decay_from=0.5)
    assert schedule.rate(0) == pytest.approx(0.1)
    assert schedule.rate(10) == schedule.rate(50) == pytest.approx(1.0)
    assert schedule.rate(75) == pytest.approx(0.51)
    assert schedule.rate(100) == pytest.approx(0.02)


def test_the_average_trails_the_weights():
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    average = Average(model, 0.9)
    nn.init.ones_(model.weight)
    for step in range(1000, 1005):
        average.update(model, step)
    assert float(average.state["weight"]) == pytest.approx(1 - 0.9**5)


def test_steps_draw_different_numbers():
    assert not torch.equal(
        torch.rand(4, generator=step_generator(0, 1)), torch.rand(4, generator=step_generator(0, 2))
    )
