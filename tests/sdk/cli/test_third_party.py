"""Commands of third parties: named when they fail, and never in the place of one of `hasten`'s own."""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from hasten import _plugins
from hasten._cli import _app, build_app
from hasten._plugins import Host, PluginRecord

HOOK = """
import asyncio, hasten, typer
@hasten.hookimpl
def hasten_register_commands(app):
"""
GOOD = """
    @app.command("ok")
    def ok(): print("fine")
"""

Invoke = Callable[..., Result]


@pytest.fixture
def third_party(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Invoke]]:
    """A command line with two third parties' commands: the given ones, and a command of a good neighbour."""

    def use(body: str) -> Invoke:
        made = Host(built_in=("hasten.eval.commands",), external=False)
        for name, source in (("bad", HOOK + body), ("good", HOOK + GOOD)):
            module = types.ModuleType(name)
            exec(source, vars(module))
            record = PluginRecord(name, "external", f"{name}-dist", "1.2")
            made._load(record, lambda module=module: module)
        monkeypatch.setattr(_plugins, "_host", made)
        return lambda *arguments: CliRunner().invoke(build_app(), [*arguments])

    return use  # type: ignore[return-value]


def broken(hasten: Invoke) -> dict[str, Any]:
    (record,) = json.loads(hasten("plugins", "--json").output)["broken"]
    return record


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("    app.command('plan')(print)", "adds a command 'plan', which already exists in hasten itself"),
        (
            "    app.command()(lambda: 0)\n    app.command('ok')(lambda: 0)",
            "'ok', which already exists in plugin good (good-dist 1.2)",
        ),
        (
            "    app.add_typer(typer.Typer(), name='eval')",
            "adds a command 'eval', which already exists in hasten itself",
        ),
        ("    app.callback()(lambda: None)", "changes existing commands or global options"),
        ("    app.registered_commands.clear()", "changes existing commands or global options"),
        ("    def odd(x: 'Missing'): ...\n    app.command()(odd)", "Missing"),
        ("    raise SystemExit('no')", "SystemExit: no"),
        ("    app.command('half')(print)\n    raise asyncio.CancelledError('no')", "CancelledError: no"),
        ("    return object()", "from hasten_register_commands; return nothing"),
    ],
)
def test_commands_that_cannot_be_taken_are_left_out(third_party: Any, body: str, message: str) -> None:
    hasten = third_party(body)
    record = broken(hasten)
    assert message in record.pop("error")
    assert record == {"plugin": "bad", "distribution": "bad-dist", "version": "1.2"}
    help_text = hasten("--help").output
    assert "half" not in help_text
    assert hasten("plan", "--help").output.count("--warm-up")
    assert hasten("eval", "--help").exit_code == 0
    assert hasten("--version").exit_code == 0
    assert hasten("ok").output == "fine\n"


def test_the_list_names_distribution_and_error_in_one_place(third_party: Any) -> None:
    output = third_party("    raise ValueError('no such thing')")("plugins").output
    table = output[output.index("broken plugins") :]
    for word in ("bad-dist", "1.2", "ValueError: no such thing"):
        assert word in table
    assert "broken" not in third_party("    pass")("plugins").output


@pytest.mark.parametrize(
    ("statement", "code", "message"),
    [
        (
            "raise ValueError('no')",
            1,
            "plugin bad (bad-dist 1.2) failed in its command 'mine': ValueError: no",
        ),
        ("raise asyncio.CancelledError()", 1, "failed in its command 'mine': CancelledError"),
        ("raise BaseException('no')", 1, "failed in its command 'mine': BaseException: no"),
        ("raise hasten.UnsupportedError('not here')", 1, "error: not here"),
        ("raise hasten.ConfigError('not like this')", 2, "error: not like this"),
        ("raise KeyboardInterrupt", 130, "interrupted"),
        ("raise typer.Exit(3)", 3, ""),
        ("raise typer.Abort", 1, "Abort"),
        ("raise typer.BadParameter('not this')", 2, "not this"),
        ("raise SystemExit(5)", 5, ""),
    ],
)
def test_a_command_that_fails_has_its_plugin_s_name(
    third_party: Any, statement: str, code: int, message: str
) -> None:
    result = third_party(f"    @app.command('mine')\n    def mine(): {statement}")("mine")
    assert result.exit_code == code
    assert message in " ".join(result.output.split())
    assert isinstance(result.exception, SystemExit | None)


def test_an_interrupt_while_plugins_load_ends_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(_app, "build_app", interrupted)
    with pytest.raises(SystemExit) as end:
        _app.main()
    assert end.value.code == 130
    assert "interrupted" in capsys.readouterr().err
