import pytest
import torch

from hasten.pipelines.var.pipeline import VARPipeline
from hasten.pipelines.var.scheduler import NextScaleScheduler
from hasten.pipelines.var.transformer import NextScaleTransformer
from hasten.pipelines.var.vq_model import MultiScaleVQModel
from hasten.schedules.scales import square_schedule

SCHEDULE = square_schedule((1, 2, 3, 4, 6))


@pytest.fixture
def pipe():
    """Three layers of four heads over 66 tokens, weights large enough that attention is not flat."""
    torch.manual_seed(0)
    transformer = NextScaleTransformer(
        num_layers=3,
        hidden_size=64,
        num_heads=4,
        token_dim=8,
        num_outputs=32,
        schedule=SCHEDULE,
        num_levels=5,
        num_classes=10,
    )
    for name, parameter in transformer.named_parameters():
        torch.nn.init.normal_(parameter, std=1.0 if name.endswith("logit_scale") else 0.15)
    vae = MultiScaleVQModel((16, 16), 1, 8, 32, norm_groups=8, attention=False)
    pipe = VARPipeline(transformer.eval(), vae.eval(), NextScaleScheduler(top_k=0, top_p=0.9))
    pipe.set_progress_bar_config(disable=True)
    return pipe
