"""The sample plugin of the guide: a real distribution, installed and used as a third party's would be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hasten_guidance_interval
import pytest
import torch
from families import FAMILIES

import hasten

SOURCE = Path(__file__).parents[2] / "examples" / "own_plugin"


@pytest.fixture
def sample() -> Iterator[Any]:
    """The sample plugin, registered for one test."""
    from hasten._plugins import host

    unregister = host().register(hasten_guidance_interval, "hasten_guidance_interval")
    yield hasten_guidance_interval
    unregister()


@pytest.mark.parametrize("family", ["sd3", "wan", "sdxl", "ltx"])
def test_outside_the_interval_it_equals_guidance_of_one(sample: Any, run: Any, family: str) -> None:
    pipe = FAMILIES[family]()
    guided, plain = (run(pipe, family, guidance_scale=scale) for scale in (5.0, 1.0))
    assert not torch.allclose(guided, plain)
    with hasten.accelerate(pipe, {"guidance_interval": {"start": 0.0, "stop": 0.0}}) as accel:
        torch.testing.assert_close(run(pipe, family, guidance_scale=5.0), plain, rtol=1e-3, atol=1e-4)
        assert {
            step.facts["guidance_interval"]["skipped"] for step in accel.report().steps if step.facts
        } == {"uncond"}
    with hasten.accelerate(pipe, {"guidance_interval": {"stop": 0.0}}):
        assert torch.equal(run(pipe, family, guidance_scale=5.0), guided)


def test_a_distilled_model_is_refused(sample: Any, flux: Any) -> None:
    with pytest.raises(hasten.UnsupportedError, match="guidance-distilled"):
        hasten.accelerate(flux, ["guidance_interval"])


def test_options_are_checked(sample: Any) -> None:
    with pytest.raises(hasten.ConfigError, match=r"start \(0.1\) must not be below stop"):
        hasten.Config.of({"guidance_interval": {"start": 0.1, "stop": 0.2}})


SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import hasten
from hasten._plugins import host
from families import FAMILIES, baseline
(record,) = [r for r in host().plugins if r.origin == "external" and "guidance" in r.distribution]
answer = {"blocked": record.blocked, "provides": record.provides, "from": [record.distribution, record.version]}
if not record.blocked:
    pipe = FAMILIES["sd3"]()
    with hasten.accelerate(pipe, {"guidance_interval": {"stop": 0.9}}) as accel:
        baseline(pipe, "sd3", num_inference_steps=2)
        answer["facts"] = [dict(step.facts) for step in accel.report().steps]
else:
    try:
        hasten.Config.of(["guidance_interval"])
    except hasten.ConfigError as error:
        answer["error"] = str(error)
print(json.dumps(answer))
"""


def test_installed_distribution_is_found_used_and_blocked(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "site"
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
    ]
    subprocess.run([*pip, "--target", str(target), str(source)], check=True, timeout=300)

    def ask(**environment: str) -> dict[str, Any]:
        variables = {**os.environ, "PYTHONPATH": str(target), **environment}
        command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[1])]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout.splitlines()[-1]))

    used = ask(HASTEN_BLOCK_PLUGINS="")
    assert used["from"] == ["hasten-guidance-interval", "1.0.0"]
    assert used["provides"] == ["technique guidance_interval"]
    assert used["facts"] == [{}, {"guidance_interval": {"skipped": "uncond"}}]
    blocked = ask(HASTEN_BLOCK_PLUGINS="something,hasten-guidance-interval")
    assert blocked["blocked"]
    assert (
        "Blocked by HASTEN_BLOCK_PLUGINS: guidance_interval (hasten-guidance-interval 1.0.0)"
        in blocked["error"]
    )
