"""Sparse attention kernels and the explicit choice between them. Importing this loads none."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Literal, get_args

import torch

from hasten.extend import UnsupportedError
from hasten.plugins.rettention.kernels._base import Epilogue, SparseKernel
from hasten.plugins.rettention.layout import SparseLayout

__all__ = ["Epilogue", "KernelName", "SparseKernel", "choose_kernel", "load_kernel", "preferred"]

KernelName = Literal["gather", "varlen", "flex", "triton", "xformers"]

_CLASSES: dict[KernelName, tuple[str, str]] = {
    "gather": ("gather", "GatherKernel"),
    "varlen": ("packed", "VarlenKernel"),
    "flex": ("flex", "FlexKernel"),
    "triton": ("triton_tiles", "TritonKernel"),
    "xformers": ("packed", "XformersKernel"),
}
_PACKAGES = {"triton": "pip install 'hasten[gpu]'", "xformers": "pip install 'hasten[gpu]'"}


@cache
def load_kernel(name: KernelName) -> SparseKernel:
    """The kernel of that name.

    Raises:
        UnsupportedError: what it is built on is not installed.
    """
    module, kind = _CLASSES[name]
    try:
        kernel: SparseKernel = getattr(import_module(f"{__name__}.{module}"), kind)()
    except ImportError as error:
        remedy = _PACKAGES.get(name, "a newer torch")
        raise UnsupportedError(f"kernel {name!r} cannot be loaded ({error}); it needs {remedy}") from error
    return kernel


def preferred(device: torch.device) -> tuple[KernelName, ...]:
    """What ``kernel="auto"`` tries on a device, in order."""
    return ("varlen", "flex", "triton", "gather") if device.type == "cuda" else ("gather",)


def choose_kernel(
    name: KernelName | Literal["auto"],
    device: torch.device,
    dtype: torch.dtype,
    dim: int,
    layout: SparseLayout,
) -> tuple[SparseKernel, str]:
    """The kernel for a call, and why it is that one.

    Args:
        name: the user's choice; ``"auto"`` takes the first of :func:`preferred` that serves the call.
        device: of the queries.
        dtype: of the queries.
        dim: channels per head.
        layout: the mask.

    Raises:
        UnsupportedError: the kernel that was asked for cannot serve the call. None is ever put in its place.
    """
    if name != "auto":
        kernel = load_kernel(name)
        reason = kernel.refusal(device, dtype, dim, layout)
        if reason is not None:
            names = ", ".join(get_args(KernelName))
            raise UnsupportedError(
                f"kernel {name!r} cannot serve heads of {dim} channels in {dtype} on {device}: {reason}. "
                f"Set kernel='auto' or another one ({names})."
            )
        return kernel, "as asked"
    passed: list[str] = []
    for candidate in preferred(device):
        try:
            kernel = load_kernel(candidate)
            reason = kernel.refusal(device, dtype, dim, layout)
        except UnsupportedError as error:
            reason = str(error)
        if reason is None:
            return kernel, "; ".join(passed) or f"the first choice on {device.type}"
        passed.append(f"{candidate}: {reason}")
    raise UnsupportedError(f"no kernel serves {dtype} on {device}: {'; '.join(passed)}")
