import pytest
import torch
from next_scale import SCHEDULE, VqReference, random_state, var_shapes

from hasten.pipelines.var.pipeline import VARPipeline


@pytest.fixture(scope="session")
def state():
    """A VAR transformer of depth 16 and width 64 in the published layout."""
    return random_state(var_shapes(layers=16, width=64))


@pytest.fixture(scope="session")
def tokenizer():
    torch.manual_seed(0)
    return VqReference().eval()


@pytest.fixture(scope="session")
def folder(tmp_path_factory, state, tokenizer):
    """The two published files."""
    folder = tmp_path_factory.mktemp("var")
    torch.save(state, folder / "var_d16.pth")
    vae = tokenizer.state_dict() | {"quantize.ema_vocab_hit_SV": torch.zeros(4, 64)}
    torch.save(vae, folder / "vae_ch160v4096z32.pth")
    return folder


@pytest.fixture
def pipe(folder):
    pipe = VARPipeline.from_original(folder, "d16", schedule=SCHEDULE)
    pipe.set_progress_bar_config(disable=True)
    return pipe
