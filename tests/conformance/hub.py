"""Stands in for the model hub: tiny random text encoders, tokenizers and processors under any name."""

from __future__ import annotations

import functools
import importlib
import os
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

os.environ["HF_HUB_OFFLINE"] = (
    "1"  # read when the hub's package is imported; else each miss waits for retries
)

import diffusers.pipelines
import torch
import transformers
from diffusers.pipelines.kolors import ChatGLMModel, ChatGLMTokenizer
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig
from tokenizers import Tokenizer, models, pre_tokenizers, processors

__all__ = ["offline"]

_WIDTH = 32
_NARROW = {"LlamaForCausalLM": 16, "Qwen2VLForConditionalGeneration": 16}
"""Widths of the hub's tiny models where the denoisers of the tests expect others."""
_WORDS = {word: index for index, word in enumerate(("<pad>", "<s>", "</s>", "<unk>"))} | {
    f"w{index}": index for index in range(4, 99)
}
_CHAT = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
_TOKENIZERS = (
    "AutoTokenizer",
    "AutoProcessor",
    "BertTokenizer",
    "ByT5Tokenizer",
    "CLIPTokenizer",
    "CLIPTokenizerFast",
    "GemmaTokenizer",
    "GemmaTokenizerFast",
    "GPT2Tokenizer",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "Qwen2Tokenizer",
    "Qwen2TokenizerFast",
    "Qwen2VLProcessor",
    "Qwen2_5_VLProcessor",
    "T5Tokenizer",
    "T5TokenizerFast",
    "XLMRobertaTokenizer",
    "XLMRobertaTokenizerFast",
)
_MODELS = (
    "AutoModel",
    "AutoModelForCausalLM",
    "BertModel",
    "Gemma2Model",
    "Gemma3ForConditionalGeneration",
    "GemmaForCausalLM",
    "LlamaForCausalLM",
    "Qwen2VLForConditionalGeneration",
    "Qwen2_5_VLForConditionalGeneration",
    "T5EncoderModel",
    "UMT5EncoderModel",
)


class _Processor(transformers.PreTrainedTokenizerFast):  # type: ignore[misc]
    """A tokenizer that also stands in for processors, and for ChatGLM's own class: pictures are not looked at."""

    image_token_id = 98

    def __call__(self, text: Any = None, *args: Any, **kwargs: Any) -> Any:
        for unseen in ("images", "videos"):
            kwargs.pop(unseen, None)
        return super().__call__(text, *args, **kwargs)


class _Positioned(_Processor):
    """ChatGLM's tokenizer numbers the tokens."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = super().__call__(*args, **kwargs)
        found["position_ids"] = torch.arange(found["input_ids"].shape[1]).expand_as(found["input_ids"])
        return found


def _tokenizer(*_: Any, kind: Any = _Processor, **__: Any) -> Any:
    """Words by white space; nearly all of them unknown."""
    words = Tokenizer(models.WordLevel(_WORDS, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return kind(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=77,
        chat_template=_CHAT,
    )


def _t5_config(*_: Any, **__: Any) -> Any:
    return transformers.T5Config(
        vocab_size=100, d_model=_WIDTH, d_kv=8, d_ff=37, num_layers=1, num_heads=4, decoder_start_token_id=0
    )


def _model(kind: Any) -> Callable[..., Any]:
    """``kind.from_pretrained``: the same class, tiny, with random weights."""

    def make(*_: Any, **__: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if "UMT5" in kind.__name__:
                return transformers.UMT5EncoderModel(
                    transformers.UMT5Config(**{**_t5_config().to_dict(), "model_type": "umt5"})
                ).eval()
            if "T5" in kind.__name__ or "Auto" in kind.__name__:
                return transformers.T5EncoderModel(_t5_config()).eval()
            width = _NARROW.get(kind.__name__, _WIDTH)
            text = {
                "vocab_size": 100,
                "hidden_size": width,
                "intermediate_size": 37,
                "num_hidden_layers": 2,
                "num_attention_heads": width // 8,
                "num_key_value_heads": 2,
            }
            seen = {
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            }
            if "ForConditionalGeneration" in kind.__name__:
                text["rope_scaling"] = {"type": "mrope", "mrope_section": [1, 1, 2]}
                return kind(kind.config_class(text_config=text, vision_config=seen)).eval()
            return kind(kind.config_class(**text)).eval()

    return make


def _chat_glm(*_: Any, **__: Any) -> Any:
    """Kolors' text encoder, which is diffusers' own class."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ChatGLMConfig(
            num_layers=2,
            padded_vocab_size=100,
            hidden_size=8,
            ffn_hidden_size=16,
            kv_channels=4,
            num_attention_heads=2,
            add_qkv_bias=True,
            original_rope=True,
        )
        model = ChatGLMModel(config).eval()
        for name, parameter in model.named_parameters():  # its norms hold whatever was in memory before
            parameter.data = (
                torch.ones_like(parameter) if "norm" in name else torch.randn_like(parameter) * 0.1
            )
        return model


def _pipeline_modules() -> Iterator[Any]:
    for found in pkgutil.walk_packages(diffusers.pipelines.__path__, "diffusers.pipelines."):
        if ".deprecated" in found.name or "onnx" in found.name or "flax" in found.name:
            continue
        try:
            yield importlib.import_module(found.name)
        except Exception:  # a package of its own is missing; no test will need it
            continue


def _small_references(stack: ExitStack, module: Any) -> None:
    """Editing pipelines bring what they are given to a megapixel, whatever the size of the call."""
    measure = getattr(module, "calculate_dimensions", None)
    if measure is not None:
        small = functools.partial(_smaller, measure)
        stack.enter_context(mock.patch.object(module, "calculate_dimensions", small))


def _smaller(measure: Callable[..., Any], area: float, ratio: float) -> Any:
    return measure(area / 256, ratio)


def _absent_packages(stack: ExitStack) -> None:
    """Two optional packages of diffusers' pipelines, whose work does not matter here."""
    unchanged = SimpleNamespace(fix_text=lambda text: text)

    def resize(picture: torch.Tensor, size: list[int], **_: Any) -> torch.Tensor:
        return torch.nn.functional.interpolate(picture, size, mode="nearest")

    transforms = SimpleNamespace(
        functional=SimpleNamespace(resize=resize, normalize=lambda picture, *_: picture),
        InterpolationMode=SimpleNamespace(NEAREST="nearest"),
    )
    for module in _pipeline_modules():
        _small_references(stack, module)
        if not hasattr(module, "ftfy"):
            stack.enter_context(mock.patch.object(module, "ftfy", unchanged, create=True))
    for name in ("transformers.transformer_cosmos", "controlnets.controlnet_cosmos"):
        module = importlib.import_module(f"diffusers.models.{name}")
        if not hasattr(module, "transforms"):
            stack.enter_context(mock.patch.object(module, "transforms", transforms, create=True))


@contextmanager
def offline() -> Iterator[None]:
    """``from_pretrained`` of transformers' classes needs no network inside."""
    with ExitStack() as stack:
        for names, make in ((_TOKENIZERS, lambda _: _tokenizer), (_MODELS, _model)):
            for name in names:
                kind = getattr(transformers, name, None)
                if kind is not None:
                    stack.enter_context(mock.patch.object(kind, "from_pretrained", make(kind)))
        stack.enter_context(mock.patch.object(ChatGLMModel, "from_pretrained", _chat_glm))
        depth = transformers.DPTImageProcessor(size={"height": 32, "width": 32})
        stack.enter_context(
            mock.patch.object(transformers.DPTImageProcessor, "from_pretrained", return_value=depth)
        )
        numbered = functools.partial(_tokenizer, kind=_Positioned)
        stack.enter_context(mock.patch.object(ChatGLMTokenizer, "from_pretrained", numbered))
        stack.enter_context(mock.patch.object(transformers.AutoConfig, "from_pretrained", _t5_config))
        _absent_packages(stack)
        yield
