"""A base that the user changes after attaching: experts are cut anew, to the bit, or the call is refused."""

import copy

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig

import hasten
from hasten._errors import ConflictError, UnsupportedError

from .conftest import PROMPTS as ALL_PROMPTS
from .conftest import write_bundle
from .test_routing import experts_of, seeds

PROMPTS = ALL_PROMPTS[:3]  # one for each expert
CALL = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "latent", "guidance_scale": 1.0}
LAYER = "down_blocks.0.resnets.0.conv1"
LORA = {"r": 4, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"], "init_lora_weights": False}


@pytest.fixture
def pipe(scenes_pipe):
    """A pipeline of the test's own."""
    own = copy.deepcopy(scenes_pipe)
    own.set_progress_bar_config(disable=True)
    return own


@pytest.fixture
def options(bundle_folder):
    return {"bundle": str(bundle_folder), "base_check": "config"}


def pictures(pipe):
    return pipe(list(PROMPTS), generator=seeds(len(PROMPTS)), **CALL).images


def weight(unet):
    return unet.get_submodule(LAYER).weight


def add_lora(unet, fuse=True):
    torch.manual_seed(3)
    unet.add_adapter(LoraConfig(**LORA), adapter_name="style")
    if fuse:
        unet.fuse_lora()


def in_place(pipe):
    with torch.no_grad():
        weight(pipe.unet).mul_(1.5)


def past_autograd(pipe):
    weight(pipe.unet).data.mul_(1.5)


def past_autograd_in_one_row(pipe):
    weight(pipe.unet).data[1] += 1.0


def by_new_data(pipe):
    weight(pipe.unet).data = weight(pipe.unet).data * 1.5


def by_new_parameter(pipe):
    layer = pipe.unet.get_submodule(LAYER)
    layer.weight = torch.nn.Parameter(layer.weight.detach() * 1.5)


def by_state_dict(pipe):
    pipe.unet.load_state_dict({name: value * 1.2 for name, value in pipe.unet.state_dict().items()})


def by_moving_average(pipe):
    from diffusers.training_utils import EMAModel

    averaged = EMAModel([p.detach() * 1.2 for p in pipe.unet.parameters()])
    averaged.copy_to(pipe.unet.parameters())


def swapped_block(pipe):
    block = copy.deepcopy(pipe.unet.mid_block)
    for parameter in block.parameters():
        parameter.data.mul_(1.2)
    pipe.unet.mid_block = block


def swapped_denoiser(pipe):
    other = copy.deepcopy(pipe.unet)
    weight(other).data.mul_(1.5)
    pipe.unet = other


def fused_lora(pipe):
    add_lora(pipe.unet)


def fused_and_unloaded_lora(pipe):
    add_lora(pipe.unet)
    pipe.unet.unload_lora()


def free_u(pipe):
    pipe.enable_freeu(s1=0.2, s2=0.2, b1=1.8, b2=1.9)


def other_processor(pipe):
    class Louder(AttnProcessor):
        def __call__(self, *args, **kwargs):
            return 2 * super().__call__(*args, **kwargs)

    pipe.unet.set_attn_processor(Louder())


def forward_hook(pipe):
    pipe.unet.get_submodule(LAYER).register_forward_hook(lambda module, args, output: 2 * output)


def cast(pipe):
    pipe.to(torch.bfloat16)


CHANGES = [
    in_place,
    past_autograd,
    past_autograd_in_one_row,
    by_new_data,
    by_new_parameter,
    by_state_dict,
    by_moving_average,
    swapped_block,
    swapped_denoiser,
    fused_lora,
    fused_and_unloaded_lora,
    free_u,
    other_processor,
    forward_hook,
    cast,
]


@pytest.mark.parametrize(
    ("change", "residency"),
    [*((change, "all") for change in CHANGES), (past_autograd, "slice_on_demand"), (fused_lora, "lru")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_experts_follow_to_the_bit(pipe, options, change, residency):
    options = {**options, "residency": residency}
    with hasten.accelerate(pipe, {"aptp": options}) as accel:
        before = pictures(pipe)
        change(pipe)
        after = pictures(pipe)
        assert set(experts_of(accel.report()).values()) != {"base"}
    with hasten.accelerate(pipe, {"aptp": options}):
        expected = pictures(pipe)
    assert torch.equal(after, expected)
    assert before.dtype != after.dtype or not torch.equal(before, after)


def test_without_a_change_nothing_is_cut_anew(pipe, options):
    with hasten.accelerate(pipe, {"aptp": options}) as accel:
        experts = accel._attachment.table.run.items[0][1].__self__._experts
        pictures(pipe)
        pipe("", **CALL)  # on the base
        with accel.paused():
            pictures(pipe)
        pictures(pipe)
        assert experts.built == 3


def test_a_fused_adapter_may_be_taken_back(pipe, options):
    with hasten.accelerate(pipe, {"aptp": options}):
        before = pictures(pipe)
        add_lora(pipe.unet)
        fused = pictures(pipe)
        pipe.unet.unfuse_lora()
        pipe.unet.disable_lora()
        assert torch.allclose(pictures(pipe), before, atol=1e-3)
        pipe.unet.delete_adapters("style")
        pipe.unet.unload_lora()
        assert torch.allclose(pictures(pipe), before, atol=1e-3)
    assert not torch.allclose(fused, before, atol=1e-2)


def test_an_adapter_that_is_not_fused_is_refused_with_the_way_out(pipe, options):
    words = r"carries an adapter that is not fused \(Linear: style\); call pipe.fuse_lora\(\)"
    accel = hasten.accelerate(pipe, {"aptp": options})
    before = pictures(pipe)
    add_lora(pipe.unet, fuse=False)
    for prompt in (PROMPTS[0], ""):  # whether an expert or the base would compute it
        with pytest.raises(UnsupportedError, match=rf"changed after attaching, first at '.*{words}"):
            pipe(prompt, **CALL)
    with accel.paused():
        pictures(pipe)
    pipe.unet.delete_adapters("style")
    pipe.unet.unload_lora()
    assert torch.equal(pictures(pipe), before)
    accel.restore()
    add_lora(pipe.unet, fuse=False)
    with pytest.raises(UnsupportedError, match=words):
        hasten.plan(pipe, {"aptp": options})
    pipe.unet.disable_lora()
    hasten.plan(pipe, {"aptp": options})


def test_other_weights_are_refused_where_the_base_is_checked(pipe, bundle_folder):
    with hasten.accelerate(pipe, {"aptp": {"bundle": str(bundle_folder)}}):
        pictures(pipe)
        add_lora(pipe.unet)
        with pytest.raises(UnsupportedError, match=r"changed after attaching.*base_check='config'"):
            pictures(pipe)


@pytest.mark.parametrize("weights", ["full", "lora"])
def test_weights_that_experts_bring_with_them_cannot_follow(pipe, tmp_path, weights):
    folder = write_bundle(pipe, tmp_path, weights=weights)
    with hasten.accelerate(pipe, {"aptp": {"bundle": str(folder), "base_check": "config"}}):
        pictures(pipe)
        with torch.no_grad():
            pipe.unet.conv_norm_out.bias.add_(1)
        with pytest.raises(UnsupportedError, match="have their own weights"):
            pictures(pipe)


def cast_layerwise(unet):
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def quantised(unet):
    """Like torchao: a subclass of tensors in the place of the weights."""

    class Packed(torch.Tensor):
        pass

    for layer in (m for m in unet.modules() if isinstance(m, torch.nn.Linear)):
        packed = layer.weight.detach().as_subclass(Packed)
        layer.weight = torch.nn.Parameter(packed, requires_grad=False)


def in_float8(unet):
    weight(unet).data = weight(unet).data.to(torch.float8_e4m3fn)


def in_int8(unet):
    layer = unet.get_submodule(LAYER)
    layer.weight = torch.nn.Parameter(layer.weight.detach().to(torch.int8), requires_grad=False)


def offloaded(unet):
    from accelerate import cpu_offload_with_hook

    cpu_offload_with_hook(unet, "cpu")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (cast_layerwise, "enable_layerwise_casting"),
        (quantised, "is a Packed: the denoiser is quantised"),
        (in_float8, "stored as torch.float8_e4m3fn"),
        (in_int8, "stored as torch.int8"),
        (offloaded, "hooks of an offloader"),
    ],
    ids=["layerwise", "torchao", "float8", "int8", "offload"],
)
def test_what_cannot_be_cut_is_refused_in_the_plan_and_later(pipe, options, change, reason):
    config = {"aptp": options}
    accel = hasten.accelerate(pipe, config)
    change(pipe.unet)
    with pytest.raises(UnsupportedError, match=f"changed after attaching.*{reason}"):
        pictures(pipe)
    accel.restore()
    for attempt in (hasten.plan, hasten.accelerate):
        with pytest.raises(UnsupportedError, match=f"aptp refuses .*{reason}"):
            attempt(pipe, config)
    with pytest.raises(UnsupportedError, match=reason):
        hasten.plan(pipe, ["aptp"])  # the search for a bundle must not hide it


def test_a_cache_is_named(pipe, options):
    from diffusers.hooks import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

    accel = hasten.accelerate(pipe, {"aptp": options})
    cache = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_block_identifiers=("attentions",),
        current_timestep_callback=lambda: 500,
    )
    apply_pyramid_attention_broadcast(pipe.unet, cache)
    with pytest.raises(ConflictError, match=r"'aptp' .*PyramidAttentionBroadcastHook"):
        pictures(pipe)
    accel.restore()
    with pytest.raises(ConflictError, match=r"'aptp' .*PyramidAttentionBroadcastHook"):
        hasten.plan(pipe, {"aptp": options})


def test_a_callback_may_call_the_pipeline_again(pipe, options):
    with hasten.accelerate(pipe, {"aptp": options}) as accel:
        expected = pictures(pipe)
        experts = accel._attachment.table.run.items[0][1].__self__._experts
        inner = []

        def callback(pipe, step, timestep, kwargs):
            if step == 0 and not inner:
                inner.append(None)
                scheduler = pipe.scheduler
                pipe.scheduler = type(scheduler).from_config(scheduler.config)
                inner.append(pipe(PROMPTS[0], generator=seeds(1)[0], **CALL).images)
                pipe.scheduler = scheduler
            return kwargs

        pipe(PROMPTS[1], callback_on_step_end=callback, **CALL)
        assert torch.allclose(inner[1][0], expected[0], atol=1e-4)
        assert experts.built == 3
