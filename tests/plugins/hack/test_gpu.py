"""Published shapes on a GPU: run with ``-m gpu`` where there is one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "docs" / "benchmarks" / "hack.py"


@pytest.mark.gpu
@pytest.mark.parametrize("pictures", [1, 8])
@pytest.mark.parametrize("shape", ["var-d30", "infinity-2b", "infinity-8b"])
def test_compression_lowers_the_peak_and_costs_no_time(shape, pictures):
    command = [sys.executable, str(SCRIPT), "time", shape, "--pictures", str(pictures), "--device", "cuda"]
    command += ["--warm-up", "--json", "--ratios", "0.7", "0.9"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    exact, *compressed = found["rows"]
    for row in compressed:
        assert row["cache_bytes"] < exact["cache_bytes"]
        assert row["peak_bytes"] < exact["peak_bytes"]
        if shape.startswith("infinity"):
            assert sorted(row["of_exact"])[1] <= 1.0
