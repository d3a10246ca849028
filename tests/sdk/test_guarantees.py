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

import hasten
from hasten._fingerprint import fingerprint

BOTH = {"scale": {"factor": 0.5}, "count": {}}


def same_structure(pipe: Any, control: Any) -> None:
    difference = fingerprint(control).diff(fingerprint(pipe))
    assert not difference, f"\n{difference}"


def test_restored_pipeline_equals_a_control_given_the_same_calls(pipe: Any, family: str, run: Any) -> None:
    control = FAMILIES[family]()
    stock = run(control, family)
    with hasten.accelerate(pipe, BOTH):
        changed = run(pipe, family)
    run(control, family)
    same_structure(pipe, control)
    assert not torch.equal(changed, stock)
    assert torch.equal(run(pipe, family), stock)


def test_between_calls_only_the_class_differs(pipe: Any, family: str, run: Any) -> None:
    control = FAMILIES[family]()
    accel = hasten.accelerate(pipe, ["scale"])
    run(pipe, family)
    run(control, family)
    different = set(fingerprint(control).diff(fingerprint(pipe)).splitlines())
    assert {line.split(":")[0] for line in different} == {"~ pipeline"}
    accel.restore()
    accel.restore()
    same_structure(pipe, control)


def test_neutral_technique_changes_no_bit(pipe: Any, family: str, run: Any) -> None:
    stock = run(pipe, family)
    with hasten.accelerate(pipe, {"scale": {"factor": 1.0}, "seen": {}}):
        assert torch.equal(run(pipe, family), stock)
        assert torch.equal(run(pipe, family), stock)


def test_looks_like_the_stock_pipeline(pipe: Any, family: str) -> None:
    stock = type(pipe)
    components = dict(pipe.components)
    signature = inspect.signature(pipe.__call__)
    with hasten.accelerate(pipe, ["scale"]):
        assert isinstance(pipe, stock)
        assert pipe.__class__.__name__ == stock.__name__
        assert inspect.signature(pipe.__call__) == signature
        assert dict(pipe.components) == components
        assert pipe.to(torch.float32) is pipe
        assert repr(pipe) == repr(FAMILIES[family]())


def test_saves_what_the_stock_pipeline_saves(pipe: Any, family: str, run: Any, tmp_path: Path) -> None:
    control = FAMILIES[family]()
    run(control, family)
    control.save_pretrained(tmp_path / "stock")
    with hasten.accelerate(pipe, ["scale"]):
        run(pipe, family)
        pipe.save_pretrained(tmp_path / "ours")
    files = [
        path.relative_to(tmp_path / "stock") for path in (tmp_path / "stock").rglob("*") if path.is_file()
    ]
    assert files
    assert len(files) == sum(path.is_file() for path in (tmp_path / "ours").rglob("*"))
    _, mismatch, missing = filecmp.cmpfiles(
        tmp_path / "stock", tmp_path / "ours", map(str, files), shallow=False
    )
    assert not mismatch
    assert not missing


@pytest.mark.parametrize("how", ["deepcopy", "copy", "pickle", "construct", "from_pipe"])
def test_copies_and_siblings_are_stock(pipe: Any, family: str, run: Any, how: str) -> None:
    stock_class = type(pipe)
    stock = run(pipe, family)
    make = {
        "deepcopy": copy.deepcopy,
        "copy": copy.copy,
        "pickle": lambda it: pickle.loads(pickle.dumps(it)),
        "construct": lambda it: type(it)(**it.components),
        "from_pipe": lambda it: it.from_pipe(it),
    }[how]
    if how in ("pickle", "deepcopy"):
        pipe.set_progress_bar_config(disable=True)
    with hasten.accelerate(pipe, {"scale": {"factor": 0.5}}):
        sibling = make(pipe)
        sibling.set_progress_bar_config(disable=True)
        assert type(sibling) is stock_class
        assert torch.equal(run(sibling, family), stock)
        assert not torch.equal(run(pipe, family), stock)
        assert torch.equal(run(sibling, family), stock)


def test_works_before_and_after_offload(family: str, run: Any) -> None:
    expected = None
    for offload_first in (True, False):
        pipe, control = FAMILIES[family](), FAMILIES[family]()
        control.enable_model_cpu_offload(device="cpu")
        if offload_first:
            pipe.enable_model_cpu_offload(device="cpu")
        accel = hasten.accelerate(pipe, {"scale": {"factor": 0.5}})
        if not offload_first:
            pipe.enable_model_cpu_offload(device="cpu")
        images = [run(pipe, family) for _ in range(3)]
        expected = images[0] if expected is None else expected
        assert all(torch.equal(image, expected) for image in images)
        accel.restore()
        for _ in range(4):
            stock = run(control, family)
        assert torch.equal(run(pipe, family), stock)
        assert not torch.equal(stock, expected)
        same_structure(pipe, control)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_exception_inside_a_run_leaves_the_next_clean(
    pipe: Any, family: str, run: Any, register: Any, error: type[BaseException]
) -> None:
    class Fails(hasten.Technique[Any]):
        name = "fails"
        summary = "fails once, at its second step"
        config_class = hasten.TechniqueConfig
        failed = False

        def claims(self, target: Any) -> list[Any]:
            return []

        def attach(self, target: Any, seams: Any) -> None:
            def handle(call: Any, proceed: Any) -> Any:
                if call.step.index == 1 and not Fails.failed:
                    Fails.failed = True
                    raise error("in the middle")
                return proceed(call)

            seams.denoiser(handle)

    register(Fails)
    control = FAMILIES[family]()
    stock = run(control, family)
    with hasten.accelerate(pipe, ["fails", "count"]) as accel:
        with pytest.raises(error):
            run(pipe, family)
        assert "in the middle" in str(accel.report().error)
        during = fingerprint(pipe).entries
        assert not [place for place in during if "_compiled_call_impl" in place]
        assert not torch.equal(run(pipe, family), stock)
        assert accel.report().error is None
        assert accel.report().steps[0].facts["count"] == {"forwards": 1}
    assert torch.equal(run(pipe, family), stock)
    same_structure(pipe, control)


def test_attention_layers_are_all_seen(pipe: Any, family: str, run: Any) -> None:
    from hasten._attention import attention_layers
    from hasten._target import Target

    layers = attention_layers(Target.of(pipe))
    with hasten.accelerate(pipe, ["seen"]) as accel:
        run(pipe, family)
    counted = accel.report().steps[0].facts["seen"]["layers"]
    assert counted == len(layers) > 0
