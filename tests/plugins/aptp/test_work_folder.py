"""What one stage leaves for the next: whatever happens to a file, it is named with what to do, and never used."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from pydantic import BaseModel
from safetensors import safe_open
from safetensors.torch import save_file

from hasten._errors import CheckpointError
from hasten._records import seal
from hasten._weights import read_sealed_tensors, save_sealed_tensors
from hasten.plugins.aptp.latency_table import LatencyTable, Row
from hasten.plugins.aptp.make.data import Prepared
from hasten.plugins.aptp.make.loop import Loop
from hasten.plugins.aptp.make.search import Searched
from hasten.plugins.aptp.make.tune import Tuned
from hasten.plugins.aptp.plan import PruningPlan

STRUCTURE = SimpleNamespace(groups={"a": SimpleNamespace(units=4)}, blocks={"b": None})
PLAN, OTHER = PruningPlan({"a": (0, 1)}), PruningPlan({"a": (2, 3)})
SEARCHED = Searched((PLAN,), (0.5,), {"budgets": [0.5]})


def prepare(folder, made="one"):
    tensors = {"latents": torch.rand(2, 4, 8, 8), "embeddings": torch.rand(2, 6)}
    tensors |= {"condition.text": torch.ones(2, 3, 6), "empty.text": torch.ones(1, 3, 6)}
    save_sealed_tensors(folder / "data.safetensors", tensors, {"made": made})
    (folder / "data.json").write_bytes(seal({"captions": ["a", "b"], "model": "m", "made": made}))


def loop(folder, steps=4):
    weight = torch.nn.Parameter(torch.ones(3))
    loss = lambda step, common, own: ((weight - step) ** 2).sum()  # noqa: E731
    return Loop(
        "test", {"w": weight}, lambda *given: (loss(*given), {}), folder, steps, 0.1, {"stage": "test"}
    )


STAGES = {
    "data.json": (prepare, Prepared.load, "hasten aptp prepare"),
    "data.safetensors": (prepare, Prepared.load, "hasten aptp prepare"),
    "latency.json": (
        lambda folder: LatencyTable(STRUCTURE, 0.5, {"b": 0.1}, {"a": Row((1, 4), (0.1, 0.2))}, {}).save(
            folder
        ),
        lambda folder: LatencyTable.load(folder, STRUCTURE),
        "hasten aptp measure",
    ),
    "search.json": (SEARCHED.save, Searched.load, "hasten aptp search"),
    "experts.safetensors": (
        Tuned("lora", ({"w.lora_A": torch.rand(2, 3)},), {"rank": 2}, SEARCHED.digests).save,
        lambda folder: Tuned.load(folder, SEARCHED),
        "hasten aptp tune",
    ),
    "state.safetensors": (lambda folder: loop(folder).run(2), lambda folder: loop(folder).run(), "delete it"),
}


def change_a_value(file):
    """The least that a disk or an editor can do: the file stays well formed."""
    if file.suffix == ".json":
        fields = json.loads(file.read_text())
        key = next(key for key in ("rest", "shares", "captions") if key in fields)
        fields[key] = {"rest": 0.6, "shares": [0.6], "captions": ["a", "c"]}[key]
        file.write_text(json.dumps(fields))
        return
    with safe_open(file, "pt") as opened:
        notes, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    name = max(tensors, key=lambda key: tensors[key].numel())
    tensors[name].view(-1)[1] += 0.5
    save_file(tensors, file, notes)


def flip_a_bit(file):
    data = bytearray(file.read_bytes())
    data[-3] ^= 2
    file.write_bytes(data)


DAMAGES = {
    "a value": change_a_value,
    "a bit": flip_a_bit,
    "cut off": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "empty": lambda file: file.write_bytes(b""),
    "a list": lambda file: file.write_text("[1, 2]"),
    "of another stage": lambda file: (
        save_sealed_tensors(file, {"x": torch.ones(1)}, {"kind": "other"})
        if file.suffix == ".safetensors"
        else file.write_bytes(seal({"kind": "other"}))
    ),
}


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_its_remedy(name, damage, tmp_path):
    make, load, remedy = STAGES[name]
    make(tmp_path)
    load(shutil.copytree(tmp_path, tmp_path / "intact"))
    DAMAGES[damage](tmp_path / name)
    with pytest.raises(CheckpointError, match=remedy) as caught:
        load(tmp_path)
    assert name in str(caught.value)


def test_two_files_that_were_not_written_together_are_refused(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        prepare(tmp_path / name, name)
    shutil.copy(tmp_path / "two" / "data.safetensors", tmp_path / "one")
    with pytest.raises(
        CheckpointError, match=r"data\.safetensors does not match .* run `hasten aptp prepare`"
    ):
        Prepared.load(tmp_path / "one")


def test_experts_of_other_plans_are_refused(tmp_path):
    Tuned("lora", ({"w.lora_A": torch.rand(2, 3)},), {}, Searched((OTHER,), (0.5,)).digests).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"experts\.safetensors was trained for plans .* aptp tune"):
        Tuned.load(tmp_path, SEARCHED)


def test_a_search_of_another_model_is_refused(tmp_path):
    other = SimpleNamespace(groups={"mid.ff": None}, blocks={})
    with pytest.raises(
        CheckpointError, match=r"search\.json is the search of another model.*hasten aptp search"
    ):
        SEARCHED.check(other, tmp_path)


def test_a_damaged_curve_is_named_and_a_torn_line_is_cut(tmp_path):
    loop(tmp_path).run(2)
    curve = tmp_path / "curve.jsonl"
    whole = curve.read_text()
    curve.write_text(whole + '{"step": 3, "lo')
    loop(tmp_path).run(3)
    assert [json.loads(line)["step"] for line in curve.read_text().splitlines()] == [1, 2, 3]
    curve.write_text("[1]\n" + whole)
    with pytest.raises(CheckpointError, match=r"curve\.jsonl:1 is damaged"):
        loop(tmp_path).run()


def test_a_state_without_a_part_of_the_optimizer_is_refused(tmp_path):
    loop(tmp_path).run(2)
    file = tmp_path / "state.safetensors"
    with safe_open(file, "pt") as opened:
        notes, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    del tensors["optimizer.w.exp_avg"], notes["sha256"]
    save_sealed_tensors(file, tensors, notes)
    with pytest.raises(CheckpointError, match=r"does not fit the optimizer of w: missing exp_avg"):
        loop(tmp_path).run()


def test_files_from_before_there_were_checksums_are_read(tmp_path):
    (tmp_path / "search.json").write_text(
        json.dumps({"plans": [PLAN.to_dict()], "shares": [0.5], "about": {}})
    )
    assert Searched.load(tmp_path).plans == (PLAN,)
    notes = {"weights": "lora", "experts": "1", "about": "{}"}
    save_file({"0.w": torch.ones(2)}, tmp_path / "experts.safetensors", notes)
    assert Tuned.load(tmp_path, SEARCHED).plans == ()


def test_sealed_tensors_come_back_to_the_bit(tmp_path):
    class Noted(BaseModel):
        kind: str

    whole = torch.rand(4, 4)
    given = {"a": whole[:, :2], "b": whole.to(torch.bfloat16), "c": torch.tensor(3), "d": torch.empty(0, 2)}
    digest = save_sealed_tensors(tmp_path / "x.safetensors", given, {"kind": "test"})
    noted, found = read_sealed_tensors(tmp_path / "x.safetensors", Noted)
    assert noted.kind == "test"
    assert len(digest) == 64
    assert all(torch.equal(found[name], value) for name, value in given.items())
    assert found["b"].dtype == torch.bfloat16
