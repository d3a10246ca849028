"""``hasten bench attention``: figures that can be trusted, wrong options told."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from hasten._adapters.tokens import TokenGrid
from hasten._cli._app import build_app
from hasten.plugins.rettention.config import RettentionConfig
from hasten.plugins.rettention.measured import Problem, measure

RUN = CliRunner()


def bench(*arguments: str):
    return RUN.invoke(build_app(), ["bench", "attention", *arguments])


def test_json_has_ratio_density_and_errors():
    result = bench("--shape", "n4096", "--heads", "1", "--rounds", "3", "--keep-ratio", "0.03125", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)["rows"]
    assert [one["shape"] for one in found] == ["n4096"]
    one = found[0]
    assert one["density"] == pytest.approx(192 / 4096)
    assert one["ratio_low"] <= one["ratio"] <= one["ratio_high"]
    assert one["ratio"] > 1
    assert 0 < one["error"] < 1e-5
    assert 0 < one["lse_error"] < 1e-5
    assert one["kernel"] == "gather"


def test_table_names_the_machine_and_the_shape():
    result = bench("--shape", "n4096", "--heads", "1", "--rounds", "1")
    assert result.exit_code == 0
    assert "n4096: batch 1, 1 heads, 4096 tokens (0 of text), 64 channels" in result.output
    assert "torch" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shape", "pixart"), "there is no such shape; did you mean 'pixart-"),
        (("--keep-ratio", "0"), "--keep-ratio 0.0: Input should be greater than 0"),
        (("--keep-ratio", "1"), "keeps all keys"),
        (("--dtype", "int8"), "dtype 'int8' cannot be used"),
        (("--mask", "round"), "--mask round:"),
        (("--kernel", "varlen"), "kernel 'varlen' cannot serve"),
    ],
)
def test_wrong_options(arguments, message):
    result = bench(*arguments, "--heads", "1")
    assert result.exit_code in (1, 2)
    assert message in result.output.replace("\n", " ")


def test_text_is_counted():
    config = RettentionConfig(keep_ratio=0.3, min_tokens=1)
    problem = Problem(
        "small", TokenGrid(3, 4, 7, before=5), 1, 2, 16, config, torch.float32, torch.device("cpu")
    )
    found = measure(problem, 1)
    assert found.density > 0.3
    assert found.error < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "least"), [("n4096", 6.0), ("pixart-1024", 5.0)])
def test_sparse_attention_is_faster_by_the_promised_factor(shape, least):
    """On two threads of an otherwise idle CPU."""
    result = bench(
        "--shape", shape, "--mask", "block_exact_budget", "--threads", "2", "--rounds", "7", "--json"
    )
    one = json.loads(result.output)["rows"][0]
    assert one["density"] == pytest.approx(0.0625)
    assert one["ratio"] >= least
    assert max(one["error"], one["lse_error"]) < 1e-5
