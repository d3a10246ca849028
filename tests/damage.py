"""Ways in which a file can be damaged, for tests of what reads it."""

import contextlib
import json
import os
import shutil
from dataclasses import dataclass, field

import torch
from safetensors import safe_open
from safetensors.torch import save_file

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 123\n"


def _remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def _folder(path):
    path.unlink()
    path.mkdir()


def _pipe(path):
    path.unlink()
    os.mkfifo(path)


def _cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: max(1, len(data) // 2)])


WHOLE = {
    "missing": _remove,
    "empty": lambda path: path.write_bytes(b""),
    "truncated": _cut,
    "pointer": lambda path: path.write_text(POINTER),
    "noise": lambda path: path.write_bytes(bytes(range(256)) * 8),
    "a folder": _folder,
    "a pipe": _pipe,
}
"""Damages of any file; each has to be refused, and the file named."""

JSON = {
    "list": lambda path: path.write_text("[1, 2]"),
    "number": lambda path: path.write_text("3"),
    "nan": lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), "zzz": float("nan")})),
    "deep": lambda path: path.write_text('{"a": ' + "[" * 100_000),
}
"""Damages of a JSON file that holds a mapping."""


def leaves(content, place=()):
    """Paths of the values in a JSON document, of lists their first entries only."""
    if isinstance(content, dict):
        yield from (leaf for key in content for leaf in leaves(content[key], (*place, key)))
    elif isinstance(content, list) and content:
        yield from leaves(content[0], (*place, 0))
    yield place


def replaced(content, place, value):
    """``content`` with another value at a path."""
    if not place:
        return value
    copied = json.loads(json.dumps(content))
    inner = copied
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return copied


@dataclass
class Tensors:
    """A file of tensors: how it is read and written."""

    path: object
    within: tuple = ()
    notes: dict = field(default_factory=dict)

    def read(self):
        if self.path.suffix == ".safetensors":
            with safe_open(self.path, "pt") as file:
                self.notes = file.metadata()
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state = torch.load(self.path, weights_only=True)
        for key in self.within:
            state = state[key]
        return state

    def write(self, state):
        if self.path.suffix == ".safetensors":
            save_file({k: v.contiguous() for k, v in state.items()}, self.path, self.notes)
            return
        for key in reversed(self.within):
            state = {key: state}
        torch.save(state, self.path)


def spoil(tensors, harm, key):
    """Damage one tensor of a file."""
    state = tensors.read()
    value = state[key]
    if harm == "missing":
        del state[key]
    elif harm == "extra":
        state[key + "_too"] = value.clone()
    elif harm == "shape":
        state[key] = torch.cat([value, value]) if value.ndim else value[None].expand(3).clone()
    elif harm == "no dimensions":
        state[key] = value.flatten()[0].clone() if value.ndim else value[None]
    elif harm == "type":
        state[key] = value.round().long() if value.is_floating_point() else value.float()
    else:
        state[key] = value.clone()
        state[key].view(-1)[-1] = {"nan": float("nan"), "infinite": float("inf")}[harm]
    tensors.write(state)


HARMS = ("missing", "extra", "shape", "no dimensions", "type", "nan", "infinite")


@contextlib.contextmanager
def alarm(seconds):
    """Fail instead of waiting for ever at a pipe that nobody writes into."""
    import signal

    def late(*_):
        raise TimeoutError(f"still reading after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
