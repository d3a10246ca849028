"""Names, prompts and values of any kind, shown: no escape sequence reaches the terminal, no markup is obeyed."""

from __future__ import annotations

import io
import pickle
import re
from pathlib import Path

import pytest
from rich.progress import Progress
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

import hasten
from hasten import Config, ConfigError, HastenError
from hasten._cli import build_app
from hasten._console import Console
from hasten._errors import suggestion
from hasten._prompts import read_prompts
from hasten._shown import printable, shortened

RED = "\x1b[31mred\x07\x9b\u202e"
SAFE = r"\x1b[31mred\x07\x9b\u202e"
ROOT = Path(__file__).parents[2]


def test_what_is_written_out_and_what_is_not() -> None:
    assert printable(RED) == SAFE
    assert printable(printable(RED)) == SAFE
    assert printable("a\ud800\u2028\r\0") == r"a\ud800\u2028\r\x00"
    plain = "ein roter Fuchs,\n\t狐 👩\u200d🚀 [red] \\x1b"
    assert printable(plain) == plain


def test_a_long_text_keeps_its_end() -> None:
    assert shortened("a" * 10, 10) == "a" * 10
    cut = shortened("a" * 500 + "b" * 500, 100)
    assert cut == "a" * 30 + " [... 940 characters ...] " + "b" * 30
    assert shortened(cut, 100) == cut


@pytest.mark.parametrize("kind", [HastenError, *HastenError.__subclasses__()])
def test_every_error(kind: type[HastenError]) -> None:
    error = kind(f"{RED} {'x' * 100_000}; do this")
    assert "\x1b" not in str(error)
    assert SAFE in str(error)
    assert len(str(error)) <= 4000
    assert str(error).endswith("; do this")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_errors_about_keys_values_and_files(tmp_path: Path) -> None:
    for value in ({RED: 1}, {"seed": RED}, {"techniques": [RED]}, {"techniques": {"scale": {RED: 1}}}):
        with pytest.raises(ConfigError) as caught:
            Config.of({"techniques": [], **value})
        assert "\x1b" not in str(caught.value)
        assert r"\x1b[31mred" in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        Config.of({"techniques": [], "seed": "x" * 10**6})
    assert len(str(caught.value)) < 400
    assert suggestion("factr" + "x" * 10**6, ["factor"]) == "."
    with pytest.raises(ConfigError, match=r"\\x1b\[31mred"):
        read_prompts(tmp_path / RED.replace("\ud800", ""))
    with pytest.raises(hasten.UnsupportedError, match=r"\\x1b\[31mred"):
        hasten.load(f"./{RED}")


def shown(*what: object, **options: object) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="truecolor", width=60)
    for item in what:
        console.print(item, **options)  # type: ignore[arg-type]
    return file.getvalue()


def test_the_console_writes_out_what_is_not_its_own() -> None:
    table = Table(RED, title=RED)
    table.add_row(RED, Text(RED))
    for text in (shown(RED, markup=False, highlight=False), shown(Text(RED)), shown(table)):
        assert r"\x1b[31mred" in text
        assert "\x1b[31mred" not in text
        assert "\x07" not in text
    assert "\x1b[1m" in shown("[bold]own[/]")
    assert shown(":fox_face: [red]", markup=False, highlight=False) == ":fox_face: [red]\n"


def test_progress_still_moves_the_cursor() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=60)
    with Progress(console=console) as progress:
        progress.update(progress.add_task(RED, total=1), completed=1)
    assert "\x1b[?25l" in file.getvalue()
    assert "\x1b[31mred" not in file.getvalue()


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", f"./{RED}"],
        ["plan", "mini/t2i-dit", "--enable", RED],
        ["plan", "mini/t2i-dit", "--config", f"{RED}.yaml"],
        ["plan", "mini/t2i-dit", "--set", f"{RED}=1"],
        ["generate", "mini/t2i-dit", "--prompts", RED],
        ["plugins", RED],
        [RED],
        ["plan", f"--{RED}"],
        ["plan", "--steps", RED],
    ],
    ids=lambda arguments: printable(" ".join(arguments)),
)
@pytest.mark.parametrize("markup", [False, True])
def test_the_command_line(arguments: list[str], markup: bool) -> None:
    """Also where the message is click's own, and as text in rich's markup."""
    given = [part.replace(RED, "[red]x[/red]") if markup else part for part in arguments]
    result = CliRunner().invoke(build_app(), given, env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    assert result.exit_code in (1, 2)
    assert "\x1b[31mred" not in result.output
    assert "\x07" not in result.output
    assert not markup or "[red]x" in result.output or "--steps" in given  # which does not repeat the value


def test_every_command_uses_that_console() -> None:
    for folder in ("sdk", "eval", "plugins", "pipelines"):
        for file in (ROOT / folder).rglob("*.py"):
            text = file.read_text("utf-8")
            assert file.name == "_console.py" or not re.search(
                r"from rich(\.console)? import .*\bConsole\b", text
            ), file
