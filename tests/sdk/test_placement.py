"""The GPU and half precision are used where they are; the machine is a pretended one."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import hasten
from hasten import ConfigError
from hasten._cli import _loading, build_app
from hasten._placement import Placement, placement

MODEL = "mini/t2i-dit"


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """``machine(gpus=2)`` pretends that torch finds two of them."""

    def pretend(gpus: int = 0, bfloat16: bool = True, apple: bool = False) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: apple)

    return pretend


@pytest.mark.parametrize(
    ("found", "chosen", "expected"),
    [
        ({}, (None, None), ("cpu", "float32")),
        ({"gpus": 1}, (None, None), ("cuda", "bfloat16")),
        ({"gpus": 1, "bfloat16": False}, (None, None), ("cuda", "float16")),
        ({"apple": True}, (None, None), ("mps", "float16")),
        ({"gpus": 1}, ("cpu", None), ("cpu", "float32")),
        ({"gpus": 1}, (None, "float32"), ("cuda", "float32")),
        ({"gpus": 2}, ("cuda:1", None), ("cuda:1", "bfloat16")),
        ({}, (None, "bfloat16"), ("cpu", "bfloat16")),
    ],
)
def test_the_choice(
    machine: Any, found: dict[str, Any], chosen: tuple[Any, Any], expected: tuple[str, str]
) -> None:
    machine(**found)
    assert placement(*chosen) == Placement(*expected)
    assert placement(*chosen).torch_dtype is getattr(torch, expected[1])


@pytest.mark.parametrize(
    ("found", "chosen", "message"),
    [
        ({}, ("cuda", None), "finds no CUDA GPU; use cpu"),
        ({"gpus": 2}, ("cuda:2", None), "available: cuda:0 to cuda:1"),
        ({}, ("mps", None), "finds no Apple GPU"),
        ({}, ("grafikkarte", None), "does not exist"),
        ({}, (None, "int8"), "Choose one of float32, bfloat16, float16"),
    ],
)
def test_what_is_not_there_is_refused(
    machine: Any, found: dict[str, Any], chosen: tuple[Any, Any], message: str
) -> None:
    machine(**found)
    with pytest.raises(ConfigError, match=message):
        placement(*chosen)


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Placement]:
    """Where commands load their model; they get it on the CPU."""
    places: list[Placement] = []
    load = _loading.load_quietly

    def note(model: str, place: Placement, call: Any = None, solver: str | None = None) -> Any:
        places.append(place)
        return load(model, Placement("cpu", "float32"), call, solver)

    for command in (
        "hasten._cli._loading",
        "hasten._cli._plan",
        "hasten._cli._generate",
        "hasten.eval.commands.perform",
    ):
        monkeypatch.setattr(f"{command}.load_quietly", note)
    return places


COMMANDS: list[tuple[Any, ...]] = [
    ("plan", MODEL, "-e", "bottleneck", "--steps", 2),
    ("generate", MODEL, "-p", "a large red circle", "--steps", 1, "--out", "out"),
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: str(arguments[0]))
def test_commands_load_where_the_line_else_the_file_else_the_machine_says(
    arguments: tuple[Any, ...],
    machine: Any,
    loaded: list[Placement],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("schema: 1\ndevice: cuda:1\ndtype: float16\n")
    machine(gpus=2)
    for more in ((), ("-c", "run.yaml", "--out", "1"), ("-c", "run.yaml", "--device", "cpu", "--out", "2")):
        line = [str(word) for word in (*arguments, *(more if arguments[0] != "plan" else more[:-2]))]
        result = CliRunner().invoke(build_app(), line)
        assert result.exit_code == 0, result.output
    assert loaded == [
        Placement("cuda", "bfloat16"),
        Placement("cuda:1", "float16"),
        Placement("cpu", "float16"),
    ]


def test_each_process_of_a_launch_takes_its_own_gpu(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from hasten._cli._options import choose_place

    machine(gpus=2)
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert choose_place(None, None, None) == Placement("cuda:1", "bfloat16")
    assert choose_place(None, "cpu", None) == Placement("cpu", "float32")


def test_a_plan_says_where_the_pipeline_computes() -> None:
    pipe = hasten.load(MODEL, dtype=torch.bfloat16)
    plan = hasten.plan(pipe, ["bottleneck"])
    assert (plan.device, plan.dtype) == ("cpu", "bfloat16")
    assert "on cpu in bfloat16" in str(plan)
    assert json.loads(plan.to_json())["dtype"] == "bfloat16"


def test_what_does_not_fit_is_said_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def set_progress_bar_config(self, **_: Any) -> None: ...

        def to(self, device: str) -> Any:
            raise torch.cuda.OutOfMemoryError(f"CUDA out of memory on {device}.\nTried to allocate 24 GiB")

        def __call__(self, **_: Any) -> None: ...

    monkeypatch.setattr(hasten, "load", lambda *_, **__: Full())
    with pytest.raises(ConfigError, match=r"Tried to allocate 24 GiB\. Choose another --device or --dtype"):
        _loading.load_quietly("owner/large", Placement("cuda", "bfloat16"))
