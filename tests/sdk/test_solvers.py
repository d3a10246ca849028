"""A solver chosen in a configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hasten import Config, ConfigError
from hasten._cli import build_app
from hasten.commands import own_solver, use_solver


def test_a_solver_is_chosen_by_name_for_good() -> None:
    import families

    pipe = families.FAMILIES["flux"]()
    assert own_solver(pipe) == "Euler"
    use_solver(pipe, "Euler")
    assert type(pipe.scheduler).__name__ == "FlowMatchEulerDiscreteScheduler"
    use_solver(pipe, "UniPC")
    assert own_solver(pipe) == "UniPC"
    with pytest.raises(
        ConfigError, match=r"'UniPD' is none that suits .*did you mean 'UniPC'.* Solvers: UniPC, Euler"
    ):
        use_solver(pipe, "UniPD")


def test_commands_take_the_solver_of_a_configuration_file(tmp_path: Path) -> None:
    file = tmp_path / "tuned.yaml"
    file.write_text("schema: 1\nmodel: mini/t2i-dit\nsteps: 2\nsolver: UniPC\ntechniques: []\n")
    assert Config.of(file).solver == "UniPC"
    size = ["--height", "64", "--width", "64", "--num-prompts", "1", "--out", str(tmp_path / "out")]
    made = CliRunner().invoke(build_app(), ["generate", "--config", str(file), *size])
    assert made.exit_code == 0, made.output
    file.write_text(file.read_text().replace("UniPC", "Heun"))
    refused = CliRunner().invoke(build_app(), ["plan", "--config", str(file)])
    assert refused.exit_code == 2
    assert "Solvers: Euler, UniPC" in refused.stderr
