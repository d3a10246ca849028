"""What a user may rely on, for every supported family: nothing stays behind, nothing else is accelerated."""

from __future__ import annotations

import copy
import filecmp
import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import Tensor

import hasten
from hasten._attention import attention_layers
from hasten._fingerprint import fingerprint
from hasten._target import Target

BOTH = {"scale": {"factor": 0.5}, "count": {}}


def same_structure(pipe: Any, control: Any) -> None:
    difference = fingerprint(control).diff(fingerprint(pipe))
    assert not difference, f"\n{difference}"


def test_nothing_stays_behind(pipe: Any, family: str, run: Any, stock: Tensor) -> None:
    control = FAMILIES[family]()
    accel = hasten.accelerate(pipe, BOTH)
    assert not torch.equal(run(pipe, family), stock)
    run(control, family)
    accel.remove("count")  # its edit of the structure is meant to last between calls; the seams are not
    different = fingerprint(control).diff(fingerprint(pipe)).splitlines()
    assert [line.split(":")[0] for line in different] == ["~ pipeline"]
    accel.restore()
    accel.restore()
    same_structure(pipe, control)
    assert torch.equal(run(pipe, family), stock)


def test_neutral_techniques_change_no_bit_and_attention_is_seen(
    pipe: Any, family: str, run: Any, stock: Tensor
) -> None:
    layers = attention_layers(Target.of(pipe))
    with hasten.accelerate(pipe, {"scale": {"factor": 1.0}, "seen": {}}) as accel:
        assert torch.equal(run(pipe, family), stock)
        steps = accel.report().steps
    seen = {layer for step in steps for layer in step.facts["seen"]["layers"]}
    ran = {step.denoiser for step in steps}
    expected = {
        layer
        for layer, module in layers.items()
        if layer.split(".")[0] in ran and "Linear" not in type(module.processor).__name__
    }
    assert seen == expected
    assert seen


def test_looks_like_the_stock_pipeline(pipe: Any, family: str) -> None:
    stock = type(pipe)
    components, text = dict(pipe.components), repr(pipe)
    signature = inspect.signature(pipe.__call__)
    with hasten.accelerate(pipe, ["scale"]):
        assert isinstance(pipe, stock)
        assert pipe.__class__.__name__ == stock.__name__
        assert inspect.signature(pipe.__call__) == signature
        assert dict(pipe.components) == components
        assert pipe.to(torch.float32) is pipe
        assert repr(pipe) == text


def test_saves_what_the_stock_pipeline_saves(pipe: Any, family: str, run: Any, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "stock"
    FAMILIES[family]().save_pretrained(theirs)
    with hasten.accelerate(pipe, ["scale"]):
        run(pipe, family)
        pipe.save_pretrained(ours)
    files = sorted(str(path.relative_to(theirs)) for path in theirs.rglob("*") if path.is_file())
    assert files == sorted(str(path.relative_to(ours)) for path in ours.rglob("*") if path.is_file())
    assert filecmp.cmpfiles(theirs, ours, files, shallow=False) == (files, [], [])


def test_copies_and_siblings_are_stock(pipe: Any, family: str, run: Any, stock: Tensor) -> None:
    stock_class = type(pipe)
    run(pipe, family)
    with hasten.accelerate(pipe, {"scale": {"factor": 0.5}}):
        deep, sibling = copy.deepcopy(pipe), pipe.from_pipe(pipe)
        others = (copy.copy(pipe), pickle.loads(pickle.dumps(pipe)), type(pipe)(**pipe.components))
        assert {type(made) for made in (deep, sibling, *others)} == {stock_class}
        assert not torch.equal(run(pipe, family), stock)
        for made in (deep, sibling):
            made.set_progress_bar_config(disable=True)
            assert torch.equal(run(made, family), stock)


def test_works_before_and_after_offload(family: str, run: Any, stock: Tensor) -> None:
    control = FAMILIES[family]()
    control.enable_model_cpu_offload(device="cpu")
    run(control, family)
    run(control, family)
    outputs = []
    for offload_first in (True, False):
        pipe = FAMILIES[family]()
        if offload_first:
            pipe.enable_model_cpu_offload(device="cpu")
        with hasten.accelerate(pipe, {"scale": {"factor": 0.5}}):
            if not offload_first:
                pipe.enable_model_cpu_offload(device="cpu")
            outputs += [run(pipe, family) for _ in range(2)]
        same_structure(pipe, control)
    assert all(torch.equal(output, outputs[0]) for output in outputs)
    assert not torch.equal(outputs[0], stock)
    assert torch.equal(run(pipe, family), stock)


class Interrupts(hasten.Technique[Any]):
    name = "interrupts"
    summary = "Ctrl-C in the first forward of its first run"
    config_class = hasten.TechniqueConfig

    def claims(self, target: Any) -> list[Any]:
        return []

    def attach(self, target: Any, seams: Any) -> None:
        pending = [KeyboardInterrupt("in the middle")]

        def handle(call: Any, proceed: Any) -> Any:
            output = proceed(call)
            if pending:
                raise pending.pop()
            return output

        seams.denoiser(handle)


def test_interrupted_run_leaves_the_next_clean(
    pipe: Any, family: str, run: Any, stock: Tensor, register: Any
) -> None:
    register(Interrupts)
    with hasten.accelerate(pipe, ["interrupts", "count"]) as accel:
        with pytest.raises(KeyboardInterrupt):
            run(pipe, family)
        assert accel.report().error == "KeyboardInterrupt: in the middle"
        assert not [place for place in fingerprint(pipe).entries if "_compiled_call_impl" in place]
        run(pipe, family)
        assert accel.report().error is None
        assert accel.report().steps[0].facts["count"] == {"forwards": 1}
    assert torch.equal(run(pipe, family), stock)
