"""VARPipeline against the literal computation in the published layout."""

import pytest
import torch
from next_scale import SCHEDULE, VarReference, random_state, var_shapes
from torch.nn import functional as F

from hasten.pipelines.var.cache import DenseKVCache
from hasten.pipelines.var.original import load_transformer, map_transformer
from hasten.pipelines.var.transformer import Conditioning, NextScaleTransformer
from hasten.schedules.scales import VAR_SCHEDULES, infinity_schedule, shared_layer_index, token_ends


@pytest.mark.parametrize("shared", [False, True], ids=["per block", "shared"])
def test_logits_of_every_scale_equal_the_reference(tmp_path, shared):
    state = random_state(var_shapes(shared=shared), scale=0.2)
    torch.save(state, tmp_path / "file.pth")
    model = load_transformer(tmp_path / "file.pth", SCHEDULE)
    assert model.config["shared_modulation"] is shared
    known = Conditioning(SCHEDULE, labels=torch.tensor([3, 10]))
    cache = DenseKVCache()
    cache.begin(SCHEDULE, 2)
    slow = [VarReference(state, label) for label in (3, 10)]
    for scale, (rows, columns) in enumerate(SCHEDULE):
        tokens = torch.randn(2, rows * columns, 8, generator=torch.Generator().manual_seed(scale))
        with torch.no_grad():
            fast = model(tokens, scale=scale, conditioning=known, cache=cache)
            expected = torch.stack([reference.logits(scale, row) for reference, row in zip(slow, tokens)])
        assert torch.allclose(fast, expected, atol=2e-5, rtol=1e-4), (scale, (fast - expected).abs().max())


def test_a_whole_generation_draws_the_tokens_and_the_picture_of_the_reference(pipe, state, tokenizer):
    """Guidance ramp, top-k, top-p, one generator for the batch, residual sum, decoder."""
    labels, guidance, top_k, top_p = (3, 7), 1.7, 20, 0.9
    drawn = []
    original = pipe.scheduler.step
    pipe.scheduler.step = lambda *a, **k: drawn.append(original(*a, **k)) or drawn[-1]
    made = pipe(
        class_labels=labels,
        guidance_scale=guidance,
        top_k=top_k,
        top_p=top_p,
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
    ).images
    references = [VarReference(state, label) for label in (*labels, 10, 10)]
    generator = torch.Generator().manual_seed(5)
    total = torch.zeros(2, 8, 4, 4)
    inputs = [None] * 4
    with torch.no_grad():
        for scale, (side, _) in enumerate(SCHEDULE):
            logits = torch.stack([r.logits(scale, x) for r, x in zip(references, inputs)])
            t = guidance * scale / 3
            logits = (1 + t) * logits[:2] - t * logits[2:]
            flat = logits.reshape(-1, 64)
            flat[flat < flat.topk(top_k).values[:, -1:]] = -float("inf")
            values, order = flat.sort()
            drop = values.softmax(-1).cumsum(-1) <= 1 - top_p
            drop[:, -1] = False
            flat[torch.zeros_like(drop).scatter(1, order, drop)] = -float("inf")
            indices = torch.multinomial(flat.softmax(-1), 1, generator=generator).view(2, side * side)
            assert torch.equal(indices, drawn[scale])
            codes = tokenizer.quantize.embedding.weight[indices].transpose(1, 2).reshape(2, 8, side, side)
            if scale < 3:
                codes = F.interpolate(codes, size=(4, 4), mode="bicubic")
            total = total + tokenizer.phi(codes, scale, 4)
            if scale < 3:
                small = F.interpolate(total, size=(side + 1, side + 1), mode="area")
                inputs = list(small.flatten(2).transpose(1, 2).repeat(2, 1, 1))
        picture = tokenizer.decode(total).clamp(-1, 1) * 0.5 + 0.5
    assert torch.allclose(made, picture, atol=1e-4)


def test_one_pass_over_known_tokens_equals_the_cached_loop():
    torch.manual_seed(0)
    for text in (False, True):
        options = {"condition": "text", "rotary": True, "shared_modulation": True} if text else {}
        model = NextScaleTransformer(
            num_layers=2,
            hidden_size=64,
            num_heads=4,
            token_dim=8,
            num_outputs=16,
            schedule=SCHEDULE,
            text_width=32,
            text_tokens=9,
            pool_heads=4,
            num_classes=5,
            **options,
        )
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        given = {"labels": torch.tensor([1, 5])}
        if text:
            mask = torch.arange(7) < torch.tensor([[7], [4]])
            given = {
                "text": torch.randn(2, 7, 32),
                "text_mask": mask,
                "unconditional": torch.tensor([False, True]),
            }
        tokens, ends = torch.randn(2, 30, 8), (0, *token_ends(SCHEDULE))
        known, cache = Conditioning(SCHEDULE, **given), DenseKVCache()
        cache.begin(SCHEDULE, 2)
        with torch.no_grad():
            steps = [
                model(tokens[:, ends[k] : ends[k + 1]], scale=k, conditioning=known, cache=cache)
                for k in range(4)
            ]
            whole = model.teacher_forced(tokens, Conditioning(SCHEDULE, **given))
            prefix = model.teacher_forced(tokens[:, :14], Conditioning(SCHEDULE, **given))
        assert torch.allclose(whole, torch.cat(steps, 1), atol=1e-5)
        assert torch.allclose(prefix, whole[:, :14], atol=1e-5)


PARAMETERS = {
    "d16": (310.28, {"num_layers": 16, "hidden_size": 1024, "num_heads": 16, "schedule": VAR_SCHEDULES[256]}),
    "d20": (600.92, {"num_layers": 20, "hidden_size": 1280, "num_heads": 20, "schedule": VAR_SCHEDULES[256]}),
    "d24": (
        1033.40,
        {"num_layers": 24, "hidden_size": 1536, "num_heads": 24, "schedule": VAR_SCHEDULES[256]},
    ),
    "d30": (
        2010.02,
        {"num_layers": 30, "hidden_size": 1920, "num_heads": 30, "schedule": VAR_SCHEDULES[256]},
    ),
    "d36": (
        2353.89,
        {
            "num_layers": 36,
            "hidden_size": 2304,
            "num_heads": 36,
            "schedule": VAR_SCHEDULES[512],
            "shared_modulation": True,
        },
    ),
}


@pytest.mark.parametrize("variant", PARAMETERS)
def test_published_configurations_have_the_published_number_of_parameters(variant):
    millions, config = PARAMETERS[variant]
    with torch.device("meta"):
        model = NextScaleTransformer(**config)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.005)


def test_the_shared_convolutions_are_chosen_as_in_the_published_weights():
    assert [shared_layer_index(k, 10, 4) for k in range(10)] == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]
    assert [shared_layer_index(k, 13, 4) for k in range(13)] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]
    assert [shared_layer_index(k, 14, 4) for k in range(14)] == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]


def test_schedules_have_the_published_number_of_tokens():
    assert {pixels: token_ends(schedule)[-1] for pixels, schedule in VAR_SCHEDULES.items()} == {
        256: 680,
        512: 2240,
        1024: 9451,
    }
    ends = [token_ends(infinity_schedule(1.0, name))[-1] for name in ("0.06M", "0.25M", "0.60M", "1M")]
    assert ends == [521, 2521, 6425, 10521]


def test_every_original_key_is_used_once(state):
    mapped = dict(map_transformer(state))
    ignored = [k for k in state if k in ("lvl_1L", "attn_bias_for_masking") or k.endswith("zero_k_bias")]
    split = sum(k.endswith("mat_qkv.weight") for k in state)
    assert len(mapped) == len(state) - len(ignored) + 2 * split
