"""``hasten aptp``: make bundles, import published ones, show and measure them."""

from __future__ import annotations

import typer

from hasten.plugins.aptp.commands import bundles, evaluate, make

__all__ = ["app"]

app = typer.Typer(help="Make and compare bundles of prompt-routed pruned experts.", no_args_is_help=True)
for module in (make, bundles, evaluate):
    module.register(app)


@app.callback()
def _main() -> None:
    """Make and compare bundles of prompt-routed pruned experts."""
