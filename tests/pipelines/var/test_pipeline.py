import pytest
import torch
from next_scale import SCHEDULE, brute_force_filter

from hasten._errors import ConfigError
from hasten.pipelines.var.base import ScaleEnd
from hasten.pipelines.var.cache import DenseKVCache
from hasten.pipelines.var.pipeline import VARPipeline
from hasten.pipelines.var.scheduler import NextScaleScheduler, filter_logits, sample


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def latents(pipe, labels, **options):
    return pipe(class_labels=labels, output_type="latent", **options).images


def test_a_folder_in_diffusers_layout_gives_the_same_pipeline(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = VARPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(
        latents(pipe, [1], generator=generators(0)), latents(again, [1], generator=generators(0))
    )
    import hasten

    assert type(hasten.load(tmp_path)) is VARPipeline
    assert hasten.load(tmp_path, torch_dtype=torch.bfloat16).transformer.dtype == torch.bfloat16


def test_a_batch_with_a_generator_each_equals_single_calls(pipe):
    together = latents(pipe, [1, 4, 7], generator=generators(3, 4, 5))
    alone = [latents(pipe, [label], generator=generators(3 + i)) for i, label in enumerate((1, 4, 7))]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(pipe):
    first, again, other = (
        pipe(class_labels=2, generator=generators(s)[0], output_type="np").images for s in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("kind", ["pil", "np", "pt", "latent"])
def test_output_kinds(pipe, kind):
    images = pipe(class_labels=[0, 1], generator=generators(0, 1), output_type=kind, return_dict=False)[0]
    assert len(images) == 2
    if kind == "pil":
        assert images[0].size == (8, 8)


def test_several_pictures_for_each_label(pipe):
    assert len(pipe(class_labels=[0, 1], num_images_per_prompt=3, generator=generators(0)[0]).images) == 6


def test_guidance_costs_no_rows_where_it_is_off(pipe, monkeypatch):
    rows = []
    forward = type(pipe.transformer).forward
    monkeypatch.setattr(
        type(pipe.transformer), "forward", lambda self, x, **k: rows.append(len(x)) or forward(self, x, **k)
    )
    latents(pipe, [1], guidance_scale=0.0)
    assert rows == [1, 1, 1, 1]
    rows.clear()
    latents(pipe, [1], guidance_scale=2.0, unguided_last_scales=2)
    assert rows == [2, 2, 1, 1]


def test_dropping_rows_changes_nothing_for_the_others(pipe):
    listed = [0.0, 1.0, 0.0, 0.0]
    dropped = latents(pipe, [1], guidance_scale=listed, generator=generators(0))
    # A vanishing weight at the end keeps all rows to the end.
    kept = latents(pipe, [1], guidance_scale=[0.0, 1.0, 0.0, 1e-30], generator=generators(0))
    assert torch.allclose(dropped, kept, atol=1e-5)


def test_the_callback_sees_every_scale_may_replace_the_latent_and_may_stop(pipe):
    seen = []

    def callback(given, end):
        assert isinstance(end, ScaleEnd)
        seen.append((end.scale, end.grid))
        if end.scale == 1:
            return torch.zeros_like(end.latent)
        given.interrupt = end.scale == 2

    latent = latents(pipe, [1], callback_on_scale_end=callback, generator=generators(0))
    assert seen == [(0, (1, 1)), (1, (2, 2)), (2, (3, 3))]
    assert float(latent.abs().sum()) > 0
    assert latents(pipe, [1]).shape == latent.shape  # the next call is not interrupted


def test_the_cache_keeps_no_last_scale_and_one_buffer_per_layer(pipe):
    """Bytes: 2 (K, V) x rows x width x layers x T_{K-1} x bytes of the dtype."""
    peaks, pointers = [], set()

    class Watched(DenseKVCache):
        def attend(self, layer, scale, query, key, value):
            out = super().attend(layer, scale, query, key, value)
            peaks.append(self.nbytes)
            pointers.update(t.data_ptr() for t in self.tensors())
            return out

    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        peaks.clear()
        pointers.clear()
        pipe.to(dtype=dtype)
        cache = Watched()
        latents(pipe, [1, 2], kv_cache=cache)
        assert max(peaks) == 2 * 4 * 64 * 16 * 14 * size
        assert len(pointers) == 2 * 16  # never moved
        assert cache.nbytes == 0


def test_an_error_leaves_no_cache_behind(pipe):
    cache = DenseKVCache()

    def fail(given, end):
        raise RuntimeError("stop here")

    with pytest.raises(RuntimeError, match="stop here"):
        latents(pipe, [1], kv_cache=cache, callback_on_scale_end=fail)
    assert cache.nbytes == 0


def test_slicing_decodes_the_same_pictures(pipe):
    whole = pipe(class_labels=[1, 2], generator=generators(0, 1), output_type="pt").images
    pipe.enable_vae_slicing()
    sliced = pipe(class_labels=[1, 2], generator=generators(0, 1), output_type="pt").images
    assert torch.allclose(whole, sliced, atol=1e-5)


def test_half_precision_keeps_logits_in_single(pipe):
    pipe.to(dtype=torch.bfloat16)
    seen = []
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda logits, *a, **k: seen.append(logits.dtype) or step(logits, *a, **k)
    image = pipe(class_labels=1, generator=generators(0)[0], output_type="pt").images
    assert set(seen) == {torch.float32}
    assert bool(torch.isfinite(image).all())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"class_labels": 10}, "class label 10 is out of range: this model knows 0 to 9"),
        ({"class_labels": -1}, "out of range"),
        ({"class_labels": [0.5]}, "class numbers"),
        ({}, "give class_labels"),
        ({"prompt": "a cat"}, "give class_labels"),
        ({"class_labels": 1, "height": 256}, "8x8 pixels only"),
        ({"class_labels": 1, "num_inference_steps": 9}, "generates 4 scales"),
        ({"class_labels": 1, "top_p": 1.5}, "top_p=1.5"),
        ({"class_labels": 1, "top_k": -1}, "top_k=-1"),
        ({"class_labels": 1, "temperature": 0}, "temperature"),
        ({"class_labels": 1, "output_type": "jpeg"}, "pil, np, pt, latent"),
        ({"class_labels": 1, "guidance_scale": [1.0]}, "1 entries for 4 scales"),
        ({"class_labels": 1, "unguided_last_scales": 5}, "between 0 and 4"),
        ({"class_labels": [1, 2], "generator": generators(0)}, "1 generators for 2 pictures"),
    ],
)
def test_bad_arguments_are_named(pipe, call, words):
    with pytest.raises(ConfigError, match=words):
        pipe(**call)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.6), (5, 1.0), (7, 0.8), (1, 0.5), (0, 1.0), (12, 0.97)])
def test_filtering_equals_the_brute_force(top_k, top_p):
    logits = torch.randn(6, 12, generator=torch.Generator().manual_seed(top_k), dtype=torch.float64)
    kept = torch.isfinite(filter_logits(logits, top_k, top_p))
    for row, mask in zip(logits, kept):
        assert set(mask.nonzero()[:, 0].tolist()) == brute_force_filter(row, top_k, top_p)


def test_draws_are_those_of_multinomial_and_follow_the_probabilities():
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(1, 20_000, 3)
    drawn = sample(logits, torch.Generator().manual_seed(0))
    same = torch.multinomial(logits[0].softmax(-1), 1, generator=torch.Generator().manual_seed(0))[:, 0]
    assert torch.equal(drawn[0], same)
    share = (
        drawn.bincount(minlength=3) / 20_000 if drawn.ndim == 1 else drawn[0].bincount(minlength=3) / 20_000
    )
    assert torch.allclose(share, torch.tensor([0.0, 1.0, 2.0]).softmax(-1), atol=0.01)


def test_guidance_conventions():
    ramp = NextScaleScheduler(guidance="ramp").guidance_weights(1.5, 4)
    assert ramp == [0.0, 0.5, 1.0, 1.5]  # a guidance of 1.5 ends at a standard scale of 2.5
    assert NextScaleScheduler(guidance="constant").guidance_weights(3.0, 3, unguided_last=1) == [
        2.0,
        2.0,
        0.0,
    ]
    assert NextScaleScheduler(guidance="constant").guidance_weights([1.0, 2.0], 2) == [0.0, 1.0]


def test_tokenize_gives_back_the_codes_a_picture_was_made_of(pipe):
    torch.manual_seed(0)
    images = torch.rand(2, 3, 8, 8) * 2 - 1
    with torch.no_grad():
        found = pipe.vae.tokenize(images, SCHEDULE)
        total = pipe.vae.empty_latent(2, SCHEDULE)
        for scale, indices in enumerate(found):
            total = pipe.vae.add_scale(total, indices, scale, SCHEDULE)
        expected, _ = pipe.vae.quantise(pipe.vae.encode(images), SCHEDULE)
    assert [len(indices[0]) for indices in found] == [1, 4, 9, 16]
    assert torch.allclose(total, expected, atol=1e-6)
