import pickle
import shutil

import pytest
import torch
from next_scale import SCHEDULE, VqReference, random_state, var_shapes

from hasten._errors import CheckpointError, ConfigError
from hasten.pipelines.var.pipeline import VARPipeline


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "files")


def load(folder, variant="d16", **options):
    return VARPipeline.from_original(folder, variant, **{"schedule": SCHEDULE, **options})


def edit(folder, change):
    state = torch.load(folder / "var_d16.pth", weights_only=True)
    change(state)
    torch.save(state, folder / "var_d16.pth")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("blocks.3.attn.q_bias"), "missing blocks.3.attn.to_q.bias"),
        (lambda s: s.update({"blocks.0.extra.weight": torch.zeros(2)}), "unexpected blocks.0.extra.weight"),
        (
            lambda s: s.update({"head.bias": torch.zeros(65)}),
            r"proj_out.bias has shape \(65,\) instead of \(64,\)",
        ),
        (lambda s: s.pop("pos_1LC"), "no 'pos_1LC'"),
    ],
    ids=["missing", "extra", "shape", "not VAR"],
)
def test_a_key_that_does_not_fit_is_named(copy, change, words):
    edit(copy, change)
    with pytest.raises(CheckpointError, match=words):
        load(copy)


def test_another_depth_is_refused(copy):
    torch.save(random_state(var_shapes(layers=3, width=64)), copy / "var_d16.pth")
    with pytest.raises(CheckpointError, match="depth 3, not 16"):
        load(copy)


def test_another_tokenizer_is_refused(copy):
    torch.save(VqReference(codes=48).state_dict(), copy / "vae_ch160v4096z32.pth")
    with pytest.raises(CheckpointError, match=r"do not belong together.*64 values.*48"):
        load(copy)


def test_a_wrong_schedule_is_refused(copy):
    with pytest.raises(CheckpointError, match="4 scales with 30 tokens"):
        load(copy, schedule=((1, 1), (2, 2), (3, 3), (5, 5)))
    with pytest.raises(CheckpointError, match="no published schedule"):
        load(copy, schedule=None)


def test_a_pickle_with_code_is_refused_and_nothing_runs(copy, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    torch.save({"pos_1LC": Evil()}, copy / "var_d16.pth")
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        load(copy)
    (copy / "var_d16.pth").write_bytes(pickle.dumps({"pos_1LC": Evil()}))
    with pytest.raises(CheckpointError, match=r"nothing in it was executed|no readable"):
        load(copy)
    assert not (tmp_path / "executed").exists()


def test_missing_files_variants_and_garbage_are_named(copy, tmp_path):
    with pytest.raises(ConfigError, match="d16, d20"):
        load(copy, "d17")
    with pytest.raises(CheckpointError, match=r"has no var_d20.pth"):
        load(copy, "d20")
    with pytest.raises(CheckpointError, match=r"neither|no folder here"):
        load(tmp_path / "nowhere")
    (copy / "var_d16.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match=r"var_d16.pth"):
        load(copy)


def test_loading_can_change_the_dtype(copy):
    assert load(copy, dtype=torch.bfloat16).transformer.dtype == torch.bfloat16
