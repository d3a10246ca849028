"""What a newcomer sees: help, listings, progress and output in a terminal of 80 columns."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from hasten._cli import _progress, build_app
from hasten._cli._startup import postpone

from .conftest import PROMPT

Run = Callable[..., Result]
HEAVY = ("torch.nn", "diffusers", "transformers", "accelerate", "scipy", "matplotlib", "PIL")


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, group
    for name, inner in getattr(group, "commands", {}).items():
        yield from commands(inner, (*path, name))


ALL = dict(commands(typer.main.get_command(build_app())))


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_help_fits_and_shows_switches_without_a_value(path: tuple[str, ...]) -> None:
    result = CliRunner().invoke(build_app(), [*path, "--help"], env={"COLUMNS": "80"})
    assert result.exit_code == 0
    assert all(len(line) <= 80 for line in result.output.splitlines())
    assert "<bool>" not in result.output
    assert "--help" in result.output


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_no_help_text_is_taken_for_markup(path: tuple[str, ...]) -> None:
    """Rich drops ``[words in brackets]``."""
    for option in ALL[path].params:
        bracketed = [
            part for part in (option.help or "").split("[")[1:] if not part.startswith(("bold]", "/]"))
        ]
        assert bracketed == [], option.name


@pytest.mark.parametrize("line", [("--help",), ("plugins",), ("plugins", "hack")])
def test_help_and_listings_load_no_heavy_library(line: tuple[str, ...]) -> None:
    program = (
        "import atexit, sys\n"
        f"sys.argv = ['hasten', *{line!r}]\n"
        f"atexit.register(lambda: print('loaded:', [n for n in {HEAVY!r} if n in sys.modules], file=sys.stderr))\n"
        "from hasten._cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "loaded: []"
    assert "hasten" in done.stdout.lower()
    assert "failed" not in done.stdout.replace("that failed", "")


def test_a_postponed_module_is_the_module_once_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "late_one").mkdir()
    (tmp_path / "late_one" / "__init__.py").write_text("value = 3\nclass Thing: ...\n")
    (tmp_path / "late_one" / "part.py").write_text("from late_one import value\n")
    monkeypatch.syspath_prepend(tmp_path)
    postpone("late_one")
    import late_one  # type: ignore[import-not-found]
    import late_one as again

    assert "value" not in vars(late_one)
    assert late_one.value == again.value == 3
    import late_one as loaded
    from late_one import part  # type: ignore[import-not-found]

    assert loaded is not late_one
    assert late_one.Thing is loaded.Thing
    assert part.value == 3
    with pytest.raises(AttributeError):
        late_one.nothing  # noqa: B018
    postpone("no_such_module")
    assert "no_such_module" not in sys.modules


def test_a_part_that_is_imported_first_is_executed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch imports its own parts, and its extension modules can't be initialised twice."""
    (tmp_path / "late_two").mkdir()
    (tmp_path / "late_two" / "__init__.py").write_text("executed = []\nfrom late_two import part\n")
    (tmp_path / "late_two" / "part.py").write_text("import late_two\nlate_two.executed.append(__name__)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    postpone("late_two")
    import late_two.part  # type: ignore[import-not-found]

    assert late_two.executed == ["late_two.part"]
    assert late_two.part.__spec__.loader is not None
    assert late_two.part is sys.modules["late_two.part"]


def test_completion_can_be_installed_and_knows_names() -> None:
    assert "--install-completion" in CliRunner().invoke(build_app(), ["--help"]).output
    completing = {**os.environ, "_HASTEN_COMPLETE": "complete_bash", "COMP_CWORD": "3"}
    command = [sys.executable, "-m", "hasten"]
    environment = {**completing, "COMP_WORDS": "hasten plan --enable bott"}
    program = "import sys; sys.argv = ['hasten']; from hasten._cli import main; main()"
    done = subprocess.run([command[0], "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["bottleneck"]


def test_a_log_shows_lines_the_first_the_last_and_one_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(_progress.time, "monotonic", lambda: now[0])
    log = io.StringIO()
    with _progress.showing_progress(console=Console(file=log)) as tell:
        for done in range(1, 31):
            now[0] += 1.0
            tell("generating", done, 30)
        tell("scoring", 0, 4)
    assert log.getvalue().splitlines() == [
        "generating: 1 of 30, 1 s",
        "generating: 11 of 30, 11 s, about 19 s left",
        "generating: 21 of 30, 21 s, about 9 s left",
        "generating: 30 of 30, 30 s",
        "scoring: 0 of 4, 30 s",
    ]
    with _progress.showing_progress(quiet=True, console=Console(file=log)) as tell:
        tell("unseen", 1, 1)
    assert "unseen" not in log.getvalue()


def test_redirected_output_tells_progress_on_the_error_stream(
    hasten: Run, folder: Path, tmp_path: Path
) -> None:
    result = hasten("generate", folder, "-p", PROMPT, "-p", PROMPT, "--steps", 1, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "baseline: 0 of 2" in result.stderr
    assert "baseline: 2 of 2" in result.stderr
    quiet = hasten("generate", folder, "-p", PROMPT, "--steps", 1, "--out", tmp_path / "quiet", "--json")
    assert quiet.stderr == ""


@pytest.mark.parametrize("columns", [80, 200])
def test_plans_fit_the_terminal(folder: Path, columns: int) -> None:
    options = ["-e", "bottleneck", "--steps", "3"]
    result = CliRunner().invoke(build_app(), ["plan", str(folder), *options], env={"COLUMNS": str(columns)})
    assert result.exit_code == 0, result.output
    assert max(map(len, result.output.splitlines())) <= columns
    assert "writes tokens.shape" in result.output
