"""The undo journal: instance level only, and undone in any order."""

from __future__ import annotations

import itertools
import logging
from typing import Any

import pytest
import torch
from torch import nn

from hasten import PluginError
from hasten._fingerprint import fingerprint
from hasten._journal import Journal


class Plain:
    shared = "of the class"

    @property
    def computed(self) -> int:
        return 1

    def greet(self) -> str:
        return "hello"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(2))
        self.last = nn.Linear(2, 2)
        self.register_buffer("offset", torch.zeros(2))
        self.processor = object()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x)) * self.scale + self.offset


@pytest.mark.parametrize("order", list(itertools.permutations("abc")))
def test_removal_in_any_order_keeps_the_others(order: tuple[str, ...]) -> None:
    thing, journal = Plain(), Journal()
    for owner in "abc":
        journal.owned(owner).wrap_callable(thing, "greet", lambda inner, o=owner: lambda: f"{o}({inner()})")
    left = list("abc")
    for owner in order:
        journal.undo(owner)
        left.remove(owner)
        expected = "hello"
        for name in left:
            expected = f"{name}({expected})"
        assert thing.greet() == expected
    assert vars(thing) == {}
    assert journal.describe() == ()


@pytest.mark.parametrize("order", list(itertools.permutations("ab")))
def test_attributes_on_top_of_each_other(order: tuple[str, ...]) -> None:
    thing, journal = Plain(), Journal()
    for owner in "ab":
        journal.owned(owner).set_attribute(thing, "shared", owner)
    assert thing.shared == "b"
    assert journal.describe() == ("Plain.shared: a > b",)
    journal.undo(order[0])
    assert thing.shared == order[1]
    journal.undo(order[1])
    assert thing.shared == "of the class"
    assert vars(thing) == {}


def test_module_edits_leave_no_trace() -> None:
    net, journal = Net(), Journal()
    before, keys, output = fingerprint_of(net), list(net.state_dict()), net(torch.ones(2))
    edit = journal.owned("a")
    edit.replace_module(net, "first", nn.Identity())
    edit.set_attribute(net, "scale", nn.Parameter(torch.full((2,), 3.0)))
    edit.set_attribute(net, "offset", torch.ones(2))
    edit.set_attribute(net, "fresh", nn.Linear(1, 1))
    edit.set_attribute(net.last, "weight", torch.zeros(2, 2))
    edit.set_processor(net, nn.Identity())
    edit.wrap_callable(net, "forward", lambda inner: lambda x: inner(x) + 1)
    assert "processor" in dict(net.named_children())
    assert not torch.equal(net(torch.ones(2)), output)
    assert list(net.state_dict()) != keys
    journal.undo("a")
    assert fingerprint_of(net) == before
    assert list(net.state_dict()) == keys
    assert torch.equal(net(torch.ones(2)), output)


def fingerprint_of(net: nn.Module) -> Any:
    holder = Plain()
    holder.net = net  # type: ignore[attr-defined]
    return fingerprint(holder)


def test_what_someone_else_changed_since_is_theirs(caplog: pytest.LogCaptureFixture) -> None:
    thing, journal = Plain(), Journal()
    journal.owned("a").set_attribute(thing, "shared", 1)
    thing.shared = "the user's"
    with caplog.at_level(logging.WARNING, "hasten"):
        journal.undo("a")
    assert thing.shared == "the user's"
    assert "Plain.shared was changed by other code" in caplog.text


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda j: j.set_attribute(Plain, "shared", 1), "only instances are edited"),
        (lambda j: j.set_attribute(torch, "ones", 1), "only instances are edited"),
        (lambda j: j.set_attribute(Plain(), "computed", 1), "Plain computes it"),
        (lambda j: j.set_attribute(1, "real", 1), "no instance attributes"),
        (lambda j: j.wrap_callable(Plain(), "__call__", lambda inner: inner), "not an ordinary method"),
        (lambda j: j.wrap_callable(Plain(), "shared", lambda inner: inner), "not an ordinary method"),
        (lambda j: j.replace_module(Net(), "frist", nn.Identity()), "Net has no submodule 'frist'"),
        (lambda j: j.set_processor(nn.Linear(1, 1), object()), "Linear has no attention processor"),
    ],
)
def test_bad_edits_are_refused(edit: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        edit(Journal().owned("a"))
