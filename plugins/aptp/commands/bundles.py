"""``hasten aptp import`` and ``show``: bundles that are made elsewhere, and what is in one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hasten import commands as common
from hasten.commands import hold_folder
from hasten.plugins.aptp.commands.arguments import BundleFolder, BundleOut, FullDtype

__all__ = ["register"]

MPNET = "sentence-transformers/all-mpnet-base-v2"


def register(app: typer.Typer) -> None:
    """Add the commands to ``app``."""
    app.command("import")(_import)
    app.command("show")(_show)


def _import(
    context: typer.Context,
    source: Annotated[Path, typer.Argument(help="Folder with arch0, arch1, ..., hypernet and quantizer.")],
    base: Annotated[str, typer.Argument(help="The base: a folder or hub id of Stable Diffusion 2.1.")],
    folder: BundleOut,
    encoder: Annotated[str, typer.Option(help="Sentence model of the router.")] = MPNET,
    device: common.Device = None,
    dtype: FullDtype = None,
) -> None:
    """Convert the published checkpoints to a bundle. Shapes are read from the tensors, and no pickle is loaded."""
    from hasten.plugins.aptp.commands.tables import show_bundle
    from hasten.plugins.aptp.importer import import_checkpoints

    place = common.choose_place(None, device, dtype, default_dtype="float32")
    hold_folder(context, folder)
    show_bundle(import_checkpoints(source, common.load_quietly(base, place), base, folder, encoder))


def _show(folder: BundleFolder) -> None:
    """Verify a bundle and print its contents."""
    from hasten.plugins.aptp.bundle import Bundle
    from hasten.plugins.aptp.commands.tables import show_bundle

    show_bundle(Bundle.load(folder).manifest)
