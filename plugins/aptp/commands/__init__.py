"""``hasten aptp``: make bundles, import published ones, show and measure them."""

from __future__ import annotations

import typer

from hasten.plugins.aptp.commands import bundles, make, trials

__all__ = ["app"]

app = typer.Typer(help="Make and compare bundles of prompt-routed pruned experts.", no_args_is_help=True)
for module in (make, bundles, trials):
    module.register(app)


@app.callback()
def _main() -> None:
    """Make and compare bundles of prompt-routed pruned experts."""
