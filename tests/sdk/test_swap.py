"""Attributes that are replaced for a while are afterwards what they were, whatever happened meanwhile."""

from __future__ import annotations

import pytest

from hasten.extend import kept, swapped


class Thing:
    name = "of the class"


def own(value: str) -> Thing:
    thing = Thing()
    thing.name = value
    return thing


@pytest.mark.parametrize("thing", [Thing(), own("the user's"), own("of the class")])
@pytest.mark.parametrize("fails", [False, True])
def test_the_instances_own_value_or_none_comes_back(thing: Thing, fails: bool) -> None:
    before = dict(vars(thing))
    try:
        with swapped(thing, "name", "ours"):
            assert thing.name == "ours"
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert vars(thing) == before


def test_swaps_nest_and_keep_the_order_of_attributes() -> None:
    thing = own("first")
    vars(thing)["last"] = 1
    with swapped(thing, "name", "outer"), swapped(thing, "name", "inner"):
        assert thing.name == "inner"
    assert list(vars(thing).items()) == [("name", "first"), ("last", 1)]


def test_what_somebody_else_set_meanwhile_stays() -> None:
    thing = own("first")
    with swapped(thing, "name", "ours"):
        thing.name = "of somebody else"
    assert thing.name == "of somebody else"
    with swapped(thing, "name", "ours"):
        del thing.name
    assert vars(thing) == {}


def test_kept_attributes_come_back_whoever_set_or_deleted_them() -> None:
    thing = own("first")
    with kept(thing, "name", "new"):
        del thing.name
        vars(thing)["new"] = 1
    assert vars(thing) == {"name": "first"}
