"""Every command that runs a model lets the user say where, and in which number format."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import typer

from hasten._cli import build_app

MODEL = "mini/t2i-dit"
COMMANDS = {
    "generate": (MODEL, "--prompt", "a"),
    "plan": (MODEL, "--enable", "bottleneck"),
    "demo": (),
    "compare": (MODEL, "--enable", "bottleneck"),
    "tune": (MODEL, "--enable", "bottleneck"),
    "eval": ("--generated", ".", "--metrics", "mini_parser"),
    "eval stats": (".", "--out", "s.npz", "--metric-option", "fid.weights=w.pth"),
    "video": (MODEL, "--prompt", "a", "--out", "a.mp4"),
    "calibrate": (MODEL, "--out", "c.json"),
    "spectrum": (MODEL, "."),
    "bench attention": (),
    "bench peers": (MODEL,),
    "kv": ("var-d16",),
    "aptp prepare": (MODEL,),
    "aptp measure": (MODEL,),
    "aptp search": (MODEL,),
    "aptp tune": (MODEL,),
    "aptp export": (MODEL, "bundle"),
    "aptp cut": (MODEL, "bundle"),
    "aptp import": (".", MODEL, "bundle"),
    "aptp bench": (MODEL, "bundle"),
    "aptp speed": ("sd21",),
    "aptp eval": (MODEL, "bundle"),
    "mini train": ("t2i-dit",),
    "mini export": ("t2i-dit", "folder"),
    "mini eval": (),
}
"""Commands that run a model, with what they need to begin."""
NO_MODEL = {
    "plugins": "lists what is installed",
    "schema": "prints a schema",
    "presets": "lists stored settings",
    "eval doctor": "checks formulas",
    "bench fid": "times arithmetic on random features, on the CPU as scoring does it",
    "bench images": "times the decoding of pictures",
    "aptp show": "reads a bundle",
}
ONE_FORMAT = {
    "eval": "a metric's network runs in the format its published figures were made in",
    "eval stats": "a metric's network runs in the format its published figures were made in",
    "mini train": "each recipe has its own mixed precision",
}
"""Why a command that runs a model takes no ``--dtype``."""


def leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    inner = getattr(command, "commands", {})
    for name, part in inner.items():
        yield from leaves(part, (*path, name))
    if path and (not inner or command.invoke_without_command):
        yield " ".join(path), command


ROOT = typer.main.get_command(build_app())
FOUND = dict(leaves(ROOT))


def options(name: str) -> set[str]:
    return {option for parameter in FOUND[name].params for option in parameter.opts}


def test_every_command_runs_a_model_or_has_a_reason() -> None:
    assert set(FOUND) == set(COMMANDS) | set(NO_MODEL)
    assert not set(COMMANDS) & set(NO_MODEL)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_place_can_be_chosen(name: str) -> None:
    assert "--device" in options(name)
    assert ("--dtype" in options(name)) != (name in ONE_FORMAT)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(("option", "value"), [("--device", "gpu0"), ("--dtype", "float12")])
def test_a_place_that_is_not_there_is_refused_at_once(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    option: str,
    value: str,
) -> None:
    if option == "--dtype" and name in ONE_FORMAT:
        return
    monkeypatch.chdir(tmp_path)
    code = ROOT.main([*name.split(), *COMMANDS[name], option, value], "hasten", standalone_mode=False)
    said = capsys.readouterr().err
    assert code == 2, said
    assert f"{option[2:]} '{value}'" in said
    assert not list(tmp_path.iterdir())
