"""Everything that needs a GPU, in one command: tests, kernels, pipelines of published shapes with random weights.

    make gpu
    python docs/benchmarks/gpu.py --out docs/benchmarks --seconds 450

Each part runs in a separate process, one after the other. A part that fails, or takes longer than its share of time,
is recorded, and the others still run. Writes ``gpu.json`` and ``gpu.md``, which name the hardware.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hasten.commands import describe_machine
from hasten.files import write_atomically

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
_KEPT = 4000
"""Characters of a failed part's output that are kept."""


@dataclass(frozen=True)
class Part:
    """One measurement.

    Args:
        name: heading on the page.
        command: arguments of Python.
        share: of the whole time it may take.
    """

    name: str
    command: tuple[str, ...]
    share: float


@dataclass(frozen=True)
class Outcome:
    """What became of a part.

    Args:
        name: of the part.
        command: what was run.
        status: ``"passed"``, ``"failed"`` or ``"out of time"``.
        seconds: it took.
        found: the JSON it printed last, if it did.
        output: end of what it printed, if it failed or printed no JSON.
    """

    name: str
    command: str
    status: str
    seconds: float
    found: Any = None
    output: str = ""


def parts(device: str, tiny: bool) -> tuple[Part, ...]:
    """Every part; ``tiny`` ones show that the script works where there is no GPU."""
    attention = ["-m", "hasten", "bench", "attention", "--json", "--device", device]
    shapes = (
        ["--shape", "n4096", "--heads", "1"] if tiny else ["--shape", "cogvideox-5b", "--shape", "flux-2048"]
    )
    kind = ["--dtype", "float32", "--rounds", "1"] if tiny else ["--dtype", "bfloat16"]
    flux = [
        str(HERE / "gpu_flux.py"),
        "--device",
        device,
        *(["--tiny", "--dtype", "float32"] if tiny else ["--compile"]),
    ]
    hack = [str(HERE / "hack.py"), "time", "infinity-2b", "--device", device, "--json"]
    small = (
        ["--layers", "1", "--rounds", "1", "--ratios", "0.7"]
        if tiny
        else ["--warm-up", "--ratios", "0.7", "0.9"]
    )
    tests = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"]
    return (
        Part("Tests", (*tests, *(["--collect-only"] if tiny else [])), 0.3),
        Part("Attention kernels", (*attention, *shapes, *kind), 0.2),
        Part(
            "FLUX shapes",
            (*flux, *(["--side", "128", "--steps", "8", "--rounds", "1"] if tiny else [])),
            0.35,
        ),
        Part("Infinity shapes", (*hack, *small), 0.15),
    )


def run(part: Part, seconds: float) -> Outcome:
    """Run one part within ``seconds``."""
    began = time.perf_counter()
    command = [sys.executable, *part.command]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds, check=False)
        status, told = ("failed" if done.returncode else "passed"), done.stdout + done.stderr
        found = _last_json(done.stdout)
    except subprocess.TimeoutExpired as error:
        status, found = "out of time", None
        told = "".join(_text(stream) for stream in (error.stdout, error.stderr))
    kept = told[-_KEPT:] if found is None or status != "passed" else ""
    shown = " ".join(["python", *(word.replace(f"{ROOT}/", "") for word in part.command)])
    return Outcome(part.name, shown, status, round(time.perf_counter() - began, 1), found, kept)


def page(machine: dict[str, Any], outcomes: Sequence[Outcome]) -> str:
    """The page, in Markdown."""
    lines = [
        "# On a GPU",
        "",
        f"Measured by `make gpu`: {machine.get('gpu', 'no GPU')}, torch {machine['torch']}, ",
    ]
    lines[-1] += f"diffusers {machine['diffusers']}. Weights are random: times count, pictures do not."
    for outcome in outcomes:
        lines += ["", f"## {outcome.name}", "", f"{outcome.status} in {outcome.seconds:.0f} s", ""]
        lines += [f"    {outcome.command}", ""]
        rows = outcome.found.get("rows") if isinstance(outcome.found, dict) else outcome.found
        lines += _table(rows) if isinstance(rows, list) else ["```", outcome.output.strip()[-1500:], "```"]
    return "\n".join(lines) + "\n"


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[_cell(row.get(column, "")) for column in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *cells)]


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")[:120]


def _last_json(text: str) -> Any:
    for start in (text, *reversed(text.strip().splitlines())):
        try:
            return json.loads(start)
        except ValueError:
            continue
    return None


def _text(stream: str | bytes | None) -> str:
    return stream.decode(errors="replace") if isinstance(stream, bytes) else stream or ""


def main() -> int:
    """Run every part, write what was found, and fail if one of them did."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=HERE, help="folder for gpu.json and gpu.md")
    parser.add_argument("--seconds", type=float, default=450, help="time for all parts together")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="shapes of a few kilobytes, to try the script")
    options = parser.parse_args()
    machine = describe_machine()
    outcomes: list[Outcome] = []
    options.out.mkdir(parents=True, exist_ok=True)
    for part in parts(options.device, options.tiny):
        outcomes.append(run(part, part.share * options.seconds))
        sys.stderr.write(f"{outcomes[-1].name}: {outcomes[-1].status}, {outcomes[-1].seconds:.0f} s\n")
        found = {"machine": machine, "parts": [asdict(outcome) for outcome in outcomes]}
        write_atomically(options.out / "gpu.json", (json.dumps(found, indent=2) + "\n").encode())
        write_atomically(options.out / "gpu.md", page(machine, outcomes).encode())
    return 0 if all(outcome.status == "passed" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
