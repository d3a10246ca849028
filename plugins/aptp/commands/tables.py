"""What the commands print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from hasten.commands import Console, Table

if TYPE_CHECKING:
    from hasten.plugins.aptp.expert_times import Timed
    from hasten.plugins.aptp.latency_table import LatencyTable
    from hasten.plugins.aptp.make.traffic import Traffic
    from hasten.plugins.aptp.manifest import Manifest

__all__ = ["show_bundle", "show_latencies", "show_times", "show_traffic"]


def show_traffic(rows: Sequence[Traffic]) -> None:
    """Where prompts go."""
    table = Table(title="Routing by kind of prompt: share of each expert")
    table.add_column("kind of prompt")
    for column in ("prompts", *map(str, range(len(rows[0].shares) - 1)), "base", "mean MACs"):
        table.add_column(column, justify="right")
    for row in rows:
        shares = (f"{share:.0%}" for share in row.shares)
        table.add_row(escape(row.kind), str(row.prompts), *shares, f"{row.macs_share:.1%}")
    Console().print(table)


def show_times(rows: Sequence[Timed]) -> None:
    """Times of forwards beside the base's."""
    table = Table(title="Time of a forward relative to the base, median of interleaved rounds")
    for column in ("expert", "share of MACs", "share of time", "95 % interval", "milliseconds"):
        table.add_column(column, justify="right")
    for row in rows:
        interval = f"{row.time.low:.3f} to {row.time.high:.3f}"
        share, milliseconds = f"{row.macs_share:.3f}", f"{1e3 * row.seconds:.1f}"
        table.add_row(row.name, share, f"{row.time.value:.3f}", interval, milliseconds)
    Console().print(table)


def show_latencies(table: LatencyTable) -> None:
    """A latency table."""
    shown = Table(title=f"Milliseconds by share of the units kept, {escape(str(table.about['device']))}")
    for column in ("module", "kept", "milliseconds"):
        shown.add_column(column, overflow="fold")
    for name, row in table.groups.items():
        times = " ".join(f"{1e3 * seconds:.2f}" for seconds in row.seconds)
        shown.add_row(escape(name), " ".join(map(str, row.kept)), times)
    for name, seconds in {**table.blocks, "rest": table.rest}.items():
        shown.add_row(escape(name), "", f"{1e3 * seconds:.2f}")
    Console().print(shown)


def show_bundle(manifest: Manifest) -> None:
    """Experts and routes of a bundle."""
    table = Table(title=f"{len(manifest.experts)} experts of {escape(manifest.base.name)}")
    for column in ("expert", "multiply-accumulates", "share", "parameters", "traffic"):
        table.add_column(column, justify="right")
    for number, expert in enumerate(manifest.experts):
        cells = (f"{expert.macs / 1e9:.4g} G", f"{expert.macs_share:.1%}", f"{expert.parameters / 1e6:.2f} M")
        table.add_row(str(number), *cells, f"{expert.traffic:.1%}")
    Console().print(table)
    if manifest.segments:
        times = ", ".join(f"{time:.2f}" for time in manifest.segments)
        routes = Table(title=f"Routes; the expert changes at flow times {times}")
        for column in ("route", "experts", "share", "traffic"):
            routes.add_column(column, justify="right")
        for number, route in enumerate(manifest.routes):
            names = ", ".join(map(str, route.experts))
            routes.add_row(str(number), names, f"{route.macs_share:.1%}", f"{route.traffic:.1%}")
        Console().print(routes)
