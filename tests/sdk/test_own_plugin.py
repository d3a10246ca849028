"""The sample plugin of the guide: a real distribution, installed and used as a third party's would be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).parents[2] / "examples" / "every_other"
SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import hasten
from hasten._plugins import host
from families import FAMILIES, baseline
(record,) = [r for r in host().plugins if r.origin == "external" and "every" in r.distribution]
answer = {"blocked": record.blocked, "provides": record.provides, "from": [record.distribution, record.version]}
if not record.blocked:
    pipe = FAMILIES["sd3"]()
    with hasten.accelerate(pipe, ["every_other"]) as accel:
        baseline(pipe, "sd3", num_inference_steps=3)
        answer["computed"] = [step.resolution is not None for step in accel.report().steps]
else:
    try:
        hasten.Config.of(["every_other"])
    except hasten.ConfigError as error:
        answer["error"] = str(error)
print(json.dumps(answer))
"""


def test_installed_distribution_is_found_used_and_blocked(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "site"
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(source)], check=True, timeout=300)

    def ask(**environment: str) -> dict[str, Any]:
        variables = {**os.environ, "PYTHONPATH": str(target), **environment}
        command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[1])]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout.splitlines()[-1]))

    used = ask(HASTEN_BLOCK_PLUGINS="")
    assert used["from"] == ["hasten-every-other", "1.0.0"]
    assert used["provides"] == ["technique every_other"]
    assert used["computed"] == [True, False, True]
    blocked = ask(HASTEN_BLOCK_PLUGINS="something,hasten-every-other")
    assert blocked["blocked"]
    assert "Blocked by HASTEN_BLOCK_PLUGINS: every_other (hasten-every-other 1.0.0)" in blocked["error"]
