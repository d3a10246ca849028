"""InfinityPipeline: parity with the literal computation, schedules, bits, checkpoints, arguments."""

import json

import pytest
import torch
from next_scale import INFINITY_GRIDS, InfinityReference, infinity_shapes, random_state
from safetensors.torch import save_file
from transformers import T5Config, T5EncoderModel

import hasten
from hasten._errors import CheckpointError, ConfigError
from hasten.pipelines.infinity.bsq_model import BSQAutoencoder
from hasten.pipelines.infinity.original import load_tokenizer, load_transformer, map_tokenizer
from hasten.pipelines.infinity.pipeline import InfinityPipeline, choose_schedule
from hasten.pipelines.var.cache import DenseKVCache
from hasten.pipelines.var.layers import rotary_phases
from hasten.pipelines.var.scheduler import NextScaleScheduler
from hasten.pipelines.var.transformer import Conditioning, NextScaleTransformer
from hasten.schedules.scales import INFINITY_RATIOS, infinity_schedule, token_ends
from hasten_miniatures.infinity_tokenizer import build_bitwise_tokenizer
from hasten_miniatures.text import build_tokenizer

SQUARE = ((1, 1), (2, 2), (4, 4))


def small(patch=1, resolution=None):
    torch.manual_seed(0)
    bits = 4 * patch**2
    transformer = NextScaleTransformer(
        num_layers=2,
        hidden_size=64,
        num_heads=2,
        token_dim=bits,
        num_outputs=2 * bits,
        schedule=SQUARE,
        num_levels=15,
        condition="text",
        text_width=24,
        text_tokens=9,
        pool_heads=2,
        shared_modulation=True,
        rotary=True,
    )
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    vae = BSQAutoencoder((16, 16), 1, 4, patch, 8)
    scheduler = NextScaleScheduler("constant", 3.0, 900, 0.97, 1.0)
    pipe = InfinityPipeline(transformer.eval(), vae.eval(), scheduler, resolution=resolution)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_logits_of_every_scale_equal_the_reference_for_texts_of_different_length(tmp_path):
    state = random_state(infinity_shapes(chunks=2), scale=0.2)
    torch.save(state, tmp_path / "file.pth")
    model = load_transformer(tmp_path / "file.pth")
    text = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    known = Conditioning(
        INFINITY_GRIDS,
        text=torch.cat([text, text]),
        text_mask=torch.cat([mask, mask]),
        unconditional=torch.tensor([False, False, True, True]),
    )
    null = state["cfg_uncond"]
    slow = [InfinityReference(state, t) for t in (text[0], text[1, :4], null[:7], null[:4])]
    cache = DenseKVCache()
    cache.begin(INFINITY_GRIDS, 2)
    for scale, (rows, columns) in enumerate(INFINITY_GRIDS):
        tokens = torch.randn(4, rows * columns, 4, generator=torch.Generator().manual_seed(scale))
        with torch.no_grad():
            fast = model(tokens, scale=scale, conditioning=known, cache=cache)
            expected = torch.stack([reference.logits(scale, row) for reference, row in zip(slow, tokens)])
        assert torch.allclose(fast, expected, atol=3e-5, rtol=1e-4), (scale, (fast - expected).abs().max())


@pytest.mark.parametrize(
    ("millions", "layers", "width", "heads", "bits"),
    [(2204.56, 32, 2048, 16, 32), (8375.79, 40, 3584, 28, 56)],
)
def test_published_configurations_have_the_published_number_of_parameters(
    millions, layers, width, heads, bits
):
    with torch.device("meta"):
        model = NextScaleTransformer(
            num_layers=layers,
            hidden_size=width,
            num_heads=heads,
            token_dim=bits,
            num_outputs=2 * bits,
            schedule=infinity_schedule(1.0),
            num_levels=15,
            condition="text",
            shared_modulation=True,
            rotary=True,
        )
    block = sum(p.numel() for p in model.blocks[0].parameters()) / 1e6
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01)
    assert block == pytest.approx({32: 67.148, 40: 205.589}[layers], abs=5e-3)


def test_positions_are_rounded_half_to_even_on_the_finest_grid():
    cos, sin = rotary_phases((20, 16), (70, 56), 8)
    angle = torch.atan2(sin, cos).view(20, 16, 4)
    places = [round(r * 3.5) for r in range(20)]
    wanted = torch.tensor(
        [torch.remainder(torch.tensor(p + torch.pi), 2 * torch.pi) - torch.pi for p in places]
    )
    assert places[:4] == [0, 4, 7, 10]
    assert torch.allclose(angle[:, 3, 0], wanted, atol=1e-4)  # rows turn the first half of the pairs
    assert torch.allclose(angle[2, :, 2], wanted[:16], atol=1e-4)  # columns the second


@pytest.mark.parametrize(
    ("size", "last", "finest"),
    [
        ((1024, 1024), (64, 64), (64, 64)),
        ((256, 256), (16, 16), (64, 64)),
        ((512, 512), (32, 32), (64, 64)),
        ((768, 768), (48, 48), (64, 64)),
        ((1120, 896), (70, 56), (70, 56)),
        ((720, 1440), (45, 90), (45, 90)),
    ],
)
def test_sizes_find_their_schedule(size, last, finest):
    schedule, grid = choose_schedule(*size)
    assert schedule[-1] == last
    assert grid == finest


def test_every_ratio_is_the_transposed_list_of_its_inverse():
    for ratio, schedule in INFINITY_RATIOS.items():
        other = min(INFINITY_RATIOS, key=lambda r: abs(r - 1 / ratio))
        assert schedule == tuple((c, r) for r, c in INFINITY_RATIOS[other])
    assert token_ends(infinity_schedule(1.0))[-1] == 10521


def residual_bits(latent, schedule, patch):
    """The published quantiser, scale by scale: what is left of the latent *as it is*, averaged, and its sign."""
    rest, found = latent.clone(), []
    for grid in schedule:
        side = [patch * n for n in grid]
        small = torch.nn.functional.interpolate(rest, size=side, mode="area")
        signs = torch.where(small > 0, 1.0, -1.0) / latent.shape[1] ** 0.5
        found.append(torch.nn.functional.pixel_unshuffle(signs, patch).permute(0, 2, 3, 1).flatten(1) > 0)
        last = grid == schedule[-1]
        rest -= (
            signs if last else torch.nn.functional.interpolate(signs, size=latent.shape[-2:], mode="bilinear")
        )
    return found, latent - rest


@pytest.mark.parametrize("patch", [1, 2])
def test_bits_of_published_tokenizers_come_from_the_latent_as_it_is(patch):
    vae = small(patch).vae
    images = torch.rand(3, 3, 8 * patch, 8 * patch, generator=torch.Generator().manual_seed(5)) * 2 - 1
    with torch.no_grad():
        latent = vae.encoder(images)
        bits, total = residual_bits(latent, SQUARE, patch)
        found = vae.tokenize(images, SQUARE)
        pictures = vae(images, SQUARE)
        assert torch.allclose(pictures, vae.decode(total), atol=1e-5)
    assert all(torch.equal(a.bool(), b) for a, b in zip(found, bits))
    unit = residual_bits(torch.nn.functional.normalize(latent, dim=1), SQUARE, patch)[0]
    assert any(
        not torch.equal(a, b) for a, b in zip(unit, bits)
    )  # the latents are not of unit length by chance


def test_the_bundled_miniature_quantises_latents_of_unit_length_as_it_was_trained():
    vae = hasten.load("mini/infinity").vae
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(5)) * 2 - 1
    schedule = tuple((side, side) for side in range(1, 9))
    with torch.no_grad():
        latent = torch.nn.functional.normalize(vae.encoder(images), dim=1)
        bits = vae.quantise(latent, schedule)[1]
        assert all(torch.equal(a, b) for a, b in zip(vae.tokenize(images, schedule), bits))
    assert build_bitwise_tokenizer().config["unit_latent"]


@pytest.mark.parametrize("patch", [1, 2])
def test_bits_and_latents_are_inverse_and_of_unit_length(patch):
    vae = BSQAutoencoder((16, 16), 1, 4, patch, 8)
    bits = torch.randint(2, (3, 12 * vae.choices), generator=torch.Generator().manual_seed(0))
    codes = vae.codes(bits, (4, 3))
    assert codes.shape == (3, 4, 4 * patch, 3 * patch)
    assert torch.allclose(codes.norm(dim=1), torch.ones(3, 4 * patch, 3 * patch))
    back = torch.nn.functional.pixel_unshuffle(codes, patch).permute(0, 2, 3, 1).flatten(1) > 0
    assert torch.equal(back.long(), bits)
    images = torch.rand(2, 3, 2 * 4 * patch, 2 * 4 * patch) * 2 - 1
    with torch.no_grad():
        found = vae.tokenize(images, SQUARE)
        total = vae.empty_latent(2, SQUARE)
        for scale, choices in enumerate(found):
            total = vae.add_scale(total, choices, scale, SQUARE)
        assert torch.allclose(total, vae.quantise(vae.encode(images), SQUARE)[0], atol=1e-6)


@pytest.mark.parametrize("patch", [1, 2])
def test_pictures_are_generated_saved_and_loaded(tmp_path, patch):
    pipe = small(patch)
    embeds = torch.randn(2, 5, 24)

    def make(pipe, rows, seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe(prompt_embeds=embeds[rows], generator=generators, output_type="pt").images

    both = make(pipe, [0, 1], (1, 2))
    assert both.shape == (2, 3, 8 * patch, 8 * patch)
    assert torch.allclose(both[1:], make(pipe, [1], (2,)), atol=1e-5)
    pipe.save_pretrained(tmp_path)
    again = InfinityPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(make(again, [0, 1], (1, 2)), both)
    assert again.config["resolution"] is None


def test_a_sharded_folder_and_a_training_checkpoint_load_like_a_file(tmp_path):
    state = random_state(infinity_shapes())
    torch.save({"trainer": {"gpt_fsdp": state}}, tmp_path / "file.pth")
    folder = tmp_path / "weights"
    folder.mkdir()
    names = sorted(state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, keys in shards.items():
        save_file({key: state[key] for key in keys}, folder / shard)
    index = {"weight_map": {key: shard for shard, keys in shards.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    one, two = load_transformer(tmp_path / "file.pth"), load_transformer(folder)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values()))
    (folder / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks b.safetensors"):
        load_transformer(folder)


def test_tokenizers_load_with_and_without_their_extra_level(tmp_path):
    vae = BSQAutoencoder((32, 64), 1, 4)
    deep = {}
    for key, value in vae.state_dict().items():
        *place, kind = key.split(".")
        deep[".".join([*place, "norm" if place[-1].startswith("norm") else "conv", kind])] = value
    torch.save({"vae": {**deep, "quantizer.lfq.mask": torch.zeros(4)}}, tmp_path / "deep.pth")
    torch.save({"vae": vae.state_dict()}, tmp_path / "flat.pth")
    for name in ("deep.pth", "flat.pth"):
        loaded = load_tokenizer(tmp_path / name)
        assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), vae.state_dict().values()))
    assert set(dict(map_tokenizer(deep))) == set(vae.state_dict())


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    torch.save(random_state(infinity_shapes(layers=32)), tmp_path / "infinity_2b_reg.pth")
    torch.save({"vae": BSQAutoencoder((32, 64), 1, 6).state_dict()}, tmp_path / "infinity_vae_d32reg.pth")
    with pytest.raises(CheckpointError, match="do not belong together"):
        InfinityPipeline.from_original(tmp_path, "2b", text_encoder=None)
    torch.save({"vae": BSQAutoencoder((32, 64), 1, 4).state_dict()}, tmp_path / "infinity_vae_d32reg.pth")
    assert InfinityPipeline.from_original(tmp_path, "2b", text_encoder=None).config["resolution"] == "1M"
    with pytest.raises(ConfigError, match="2b, 8b"):
        InfinityPipeline.from_original(tmp_path, "3b")
    torch.save(random_state(infinity_shapes(layers=3)), tmp_path / "infinity_2b_reg.pth")
    with pytest.raises(CheckpointError, match="depth 3, not 32"):
        InfinityPipeline.from_original(tmp_path, "2b", text_encoder=None)


def with_t5():
    """The small pipeline with a T5 encoder and a tokenizer of words."""
    torch.manual_seed(1)
    config = T5Config(vocab_size=64, d_model=24, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
    pipe, tokenizer = small(), build_tokenizer()
    parts = {"text_encoder": T5EncoderModel(config).eval(), "tokenizer": tokenizer}
    full = InfinityPipeline(pipe.transformer, pipe.vae, pipe.scheduler, **parts, resolution=None)
    full.set_progress_bar_config(disable=True)
    return full


def test_prompts_of_different_length_in_a_batch_equal_single_calls():
    pipe, texts = with_t5(), ["a red circle on the left", "a star"]

    def make(prompt, negative, *seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return pipe(prompt, negative, generator=generators, output_type="latent").images

    for negative in (None, "a blue cross"):
        both = make(texts, negative, 1, 2)
        alone = torch.cat([make(texts[0], negative, 1), make(texts[1], negative, 2)])
        assert torch.allclose(both, alone, atol=1e-5)
    assert not torch.allclose(make(texts, None, 1, 2), both)
    one_each = make(texts, ["a blue cross", "a blue cross"], 1, 2)
    assert torch.allclose(both, one_each, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"prompt": ""}, "prompt 0 is empty"),
        ({"prompt": ["a star", "  "]}, "prompt 1 is empty"),
        ({"prompt": ["a star", "a red star " * 5]}, r"prompt 1 has 17 tokens, the model takes 9; shorten"),
        ({"prompt": "a star", "negative_prompt": ""}, "negative prompt 0 is empty"),
        ({"prompt": ["a star"] * 3, "negative_prompt": ["a"] * 2}, "2 negative prompts for 3 prompts"),
    ],
    ids=str,
)
def test_bad_texts_are_named(call, words):
    with pytest.raises(ConfigError, match=words):
        with_t5()(**call)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({}, "either prompt or prompt_embeds"),
        ({"prompt": "a cat"}, "no text encoder"),
        ({"prompt_embeds": torch.zeros(1, 3, 5)}, r"\(batch, tokens, 24\)"),
        ({"prompt_embeds": torch.zeros(1, 12, 24)}, "12 tokens, the model takes 9"),
        ({"prompt_embeds": torch.zeros(1, 3, 24), "prompt_mask": torch.ones(1, 2)}, "prompt_mask"),
        ({"prompt_embeds": torch.zeros(1, 3, 24), "height": 64}, "8x8 pixels only"),
        ({"prompt_embeds": torch.zeros(1, 3, 24), "num_inference_steps": 4}, "generates 3 scales"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises(ConfigError, match=words):
        small()(**call)
