"""Run diffusers' own pipeline tests stock, then with exact settings attached, and compare.

    python tests/conformance/own_tests.py CHECKOUT tests/pipelines/wan tests/pipelines/flux [-- PYTEST OPTIONS]

Exit code 0 if every test that passes stock passes attached, else 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
OPTIONS = ("-q", "--no-header", "--tb=short", "-p", "attached", "-p", "no:cacheprovider")


def outcomes(checkout: Path, files: list[str], attach: str, options: list[str]) -> dict[str, Any]:
    """Outcome by test of one pytest run in the checkout, and how many calls had which techniques."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "outcomes.json"
        command = [sys.executable, "-m", "pytest", *OPTIONS, f"--attach={attach}", f"--outcomes={written}"]
        paths = os.pathsep.join((str(HERE), os.environ.get("PYTHONPATH", "")))
        environment = {**os.environ, "PYTHONPATH": paths, "HASTEN_CACHE": ""}
        subprocess.run([*command, *files, *options], cwd=checkout, env=environment, check=False)
        if not written.exists():
            raise SystemExit("pytest did not finish; its own messages are above")
        found: dict[str, Any] = json.loads(written.read_text("utf-8"))
        return found


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    parser.add_argument("files", nargs="+", help="test files or folders, relative to the checkout")
    parser.add_argument("--attach", default="bottleneck,rettention", help="techniques, by commas")
    ours = sys.argv[1:]
    end = ours.index("--") if "--" in ours else len(ours)
    given, theirs = parser.parse_args(ours[:end]), ours[end + 1 :]
    stock, attached = (outcomes(given.checkout, given.files, attach, theirs) for attach in ("", given.attach))
    passed = [name for name, outcome in stock["tests"].items() if outcome == "passed"]
    broken = [name for name in passed if attached["tests"].get(name) != "passed"]
    for name in broken:
        sys.stdout.write(f"{attached['tests'].get(name, 'missing')}: {name}\n")
    sys.stdout.write(
        f"{len(passed)} tests pass stock, {len(passed) - len(broken)} of them attached; "
        f"calls: {attached['calls']}\n"
    )
    raise SystemExit(bool(broken))


if __name__ == "__main__":
    main()
