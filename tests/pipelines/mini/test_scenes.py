import itertools

import pytest

from hasten import Captions, ConfigError
from hasten.pipelines.mini import prompts
from hasten.pipelines.mini.scenes import (
    COLOURS,
    HELD_OUT,
    PLACES,
    SHAPES,
    ObjectGroup,
    Scene,
    is_scene_caption,
    parse_caption,
    place,
    sample_scene,
)


def test_a_scene_is_a_function_of_seed_and_index():
    again = [sample_scene(3, i) for i in range(50)]
    assert [sample_scene(3, i) for i in range(50)] == again
    assert [sample_scene(4, i) for i in range(50)] != again
    assert place(again[0], 3, 0) == place(again[0], 3, 0)
    assert place(again[0], 3, 0) != place(again[0], 3, 1)


def test_held_out_combinations_never_occur_in_training():
    for index in range(2000):
        groups = sample_scene(11, index).groups
        assert not {(g.shape, g.colour) for g in groups} & HELD_OUT
        assert not {(g.shape, g.place) for g in groups} & HELD_OUT


def test_every_held_out_scene_shows_a_held_out_combination():
    assert all(sample_scene(11, index, "held_out").held_out for index in range(500))


def test_held_out_is_a_tenth_or_so_of_single_objects():
    combinations = list(itertools.product(SHAPES, COLOURS, PLACES))
    share = sum(ObjectGroup(1, "large", c, s, p).held_out for s, c, p in combinations) / len(combinations)
    assert 0.1 < share < 0.16


def test_training_still_shows_every_single_value():
    groups = [group for index in range(1000) for group in sample_scene(5, index).groups]
    assert {group.shape for group in groups} == set(SHAPES)
    assert {group.colour for group in groups} == set(COLOURS)
    assert {group.place for group in groups} == set(PLACES)
    assert {group.count for group in groups} == {1, 2, 3}


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_captions_round_trip(split):
    for index in range(500):
        scene = sample_scene(7, index, split)
        assert is_scene_caption(scene.caption())
        assert parse_caption(scene.caption()) == scene


def test_plural_of_a_shape_that_ends_in_s():
    scene = Scene((ObjectGroup(3, "small", "green", "cross", "at the top"),), "black")
    assert scene.caption() == "three small green crosses at the top on a black background"
    assert parse_caption(scene.caption()) == scene


@pytest.mark.parametrize(
    "text", ["", "a red fox", "a large red circle", "a huge red circle on the left on a white background"]
)
def test_other_sentences_are_refused_with_an_example(text):
    assert not is_scene_caption(text)
    with pytest.raises(ConfigError, match="a large red circle on the left"):
        parse_caption(text)


def test_prompts_are_distinct_seeded_and_of_their_split():
    found = prompts(64, 1, "held_out")
    assert len(set(found)) == 64
    assert found == prompts(64, 1, "held_out")
    assert found != prompts(64, 2, "held_out")
    assert all(parse_caption(text).held_out for text in found)
    assert not any(parse_caption(text).held_out for text in prompts(64, 1))


def test_more_prompts_than_there_are_is_an_error():
    one = Captions(lambda *_: sample_scene(0, 0).caption(), lambda _: True)
    with pytest.raises(ConfigError, match="request fewer"):
        one.prompts(2)
