"""Small models of the library transformers, from configurations, random weights. Needs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from zoo.export import Export, write

VOCABULARY = 300
HIDDEN = 64
TOKENS = {0: "batch", 1: "seq"}
IMAGES = {0: "batch"}
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
DECODER: dict[str, Any] = SIZES | {"num_key_value_heads": 2, "max_position_embeddings": 128}
PATCHES: dict[str, Any] = SIZES | {"image_size": 32, "patch_size": 8}


class Call(nn.Module):
    """A model called with named arguments; its outputs `names` as a tuple."""

    def __init__(self, model: nn.Module, arguments: list[str], names: list[str], **fixed: Any):
        super().__init__()
        self.model, self.arguments, self.names, self.fixed = model, arguments, names, fixed

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.arguments, tensors, strict=True))
        result = self.model(**given, **self.fixed)
        return tuple(getattr(result, name) for name in self.names)


class Cached(nn.Module):
    """A decoder whose caches come in and go out as tensors: key, value, layer by layer."""

    def __init__(self, model: nn.Module, layers: int) -> None:
        super().__init__()
        self.model, self.layers = model, layers

    def forward(self, input_ids: Tensor, mask: Tensor, positions: Tensor, *past: Tensor) -> Any:
        cache = hf.DynamicCache(config=self.model.config)
        for layer in range(self.layers):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        result = self.model(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        present = [t for layer in result.past_key_values.layers for t in (layer.keys, layer.values)]
        return (result.logits, *present)


def ids(length: int = 9, high: int = VOCABULARY) -> Tensor:
    return torch.randint(0, high, (2, length))


def call(
    model: nn.Module,
    inputs: dict[str, tuple[Tensor, dict[int, str]]],
    outputs: dict[str, dict[int, str]],
    **fixed: Any,
) -> Export:
    return Export(Call(model, list(inputs), list(outputs), **fixed), inputs, outputs)


def encoder(model: nn.Module, types: bool) -> Export:
    inputs = {"input_ids": (ids(), TOKENS), "attention_mask": (torch.ones_like(ids()), TOKENS)}
    if types:
        inputs["token_type_ids"] = (ids(high=2), TOKENS)
    return call(model, inputs, {"last_hidden_state": TOKENS})


def bert() -> Export:
    return encoder(hf.BertModel(hf.BertConfig(**SIZES)), types=True)


def distilbert() -> Export:
    config = hf.DistilBertConfig(
        vocab_size=VOCABULARY, dim=64, hidden_dim=128, n_layers=2, n_heads=4
    )
    return encoder(hf.DistilBertModel(config), types=False)


def causal(model: nn.Module) -> Export:
    """Logits of all tokens, without caches."""
    inputs = {"input_ids": (ids(), TOKENS), "attention_mask": (torch.ones_like(ids()), TOKENS)}
    return call(model, inputs, {"logits": TOKENS}, use_cache=False)


def gpt2() -> Export:
    config = hf.GPT2Config(
        vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=128, n_inner=128
    )
    return causal(hf.GPT2LMHeadModel(config))


def llama() -> Export:
    return causal(hf.LlamaForCausalLM(hf.LlamaConfig(**DECODER)))


def with_cache(model: nn.Module) -> Export:
    """A decoder that continues: 3 new tokens after 5 in the caches."""
    config, past, new = model.config, 5, 3
    head = HIDDEN // config.num_attention_heads
    caches = {0: "batch", 2: "past"}
    inputs: dict[str, tuple[Tensor, dict[int, str]]] = {
        "input_ids": (ids(new), TOKENS),
        "attention_mask": (
            torch.ones(2, past + new, dtype=torch.int64),
            {0: "batch", 1: "past + seq"},
        ),
        "position_ids": (torch.arange(past, past + new).repeat(2, 1), TOKENS),
    }
    outputs = {"logits": TOKENS}
    for layer in range(config.num_hidden_layers):
        for kind in ("key", "value"):
            tensor = torch.randn(2, config.num_key_value_heads, past, head)
            inputs[f"past_key_values.{layer}.{kind}"] = (tensor, caches)
            outputs[f"present.{layer}.{kind}"] = {0: "batch", 2: "past + seq"}
    return Export(Cached(model, config.num_hidden_layers), inputs, outputs)


def qwen2() -> Export:
    return with_cache(hf.Qwen2ForCausalLM(hf.Qwen2Config(**DECODER)))


def mistral() -> Export:
    config = hf.MistralConfig(**DECODER, head_dim=16, sliding_window=None)
    return with_cache(hf.MistralForCausalLM(config))


def mistral_window() -> Export:
    """Each token sees the last 8 only; without caches, whose lengths the exporters would fix."""
    config = hf.MistralConfig(**DECODER, head_dim=16, sliding_window=8)
    return causal(hf.MistralForCausalLM(config))


def mamba() -> Export:
    config = hf.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8, time_step_rank=4
    )
    inputs = {"input_ids": (ids(), TOKENS)}
    return call(hf.MambaForCausalLM(config), inputs, {"logits": TOKENS}, use_cache=False)


def t5() -> Export:
    config = hf.T5Config(
        vocab_size=VOCABULARY, d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4
    )
    config._attn_implementation = "eager"  # torch.export cannot view what sdpa returns
    source, target = {0: "batch", 1: "source_len"}, {0: "batch", 1: "target_len"}
    inputs = {
        "input_ids": (ids(9), source),
        "attention_mask": (torch.ones(2, 9, dtype=torch.int64), source),
        "decoder_input_ids": (ids(4), target),
    }
    model = hf.T5ForConditionalGeneration(config)
    return call(model, inputs, {"logits": target}, use_cache=False)


def whisper_config() -> Any:
    return hf.WhisperConfig(
        vocab_size=VOCABULARY, num_mel_bins=16, d_model=64, encoder_layers=2, decoder_layers=2,
        encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=128,
        decoder_ffn_dim=128, max_source_positions=40, max_target_positions=64,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip


def whisper() -> Export:
    """The encoder; its number of frames is fixed by the table of positions."""
    model = hf.WhisperModel(whisper_config()).get_encoder()
    inputs = {"input_features": (torch.randn(2, 16, 80), IMAGES)}
    return call(model, inputs, {"last_hidden_state": IMAGES})


def whisper_decoder() -> Export:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = hf.WhisperModel(whisper_config())

        def forward(self, input_ids: Tensor, mask: Tensor, audio: Tensor) -> Tensor:
            decoded = self.model.decoder(
                input_ids=input_ids,
                attention_mask=mask,
                encoder_hidden_states=audio,
                use_cache=False,
            )
            return decoded.last_hidden_state @ self.model.decoder.embed_tokens.weight.t()

    mask = torch.ones(2, 6, dtype=torch.int64)
    inputs = {
        "input_ids": (ids(6), TOKENS),
        "attention_mask": (mask, TOKENS),
        "audio": (torch.randn(2, 40, 64), IMAGES),
    }
    return Export(Decoder(), inputs, {"logits": TOKENS})


def vit() -> Export:
    config = {k: v for k, v in PATCHES.items() if k != "vocab_size"}
    model = hf.ViTModel(hf.ViTConfig(**config))
    inputs = {"pixel_values": (torch.randn(2, 3, 32, 32), IMAGES)}
    return call(model, inputs, {"last_hidden_state": IMAGES, "pooler_output": IMAGES})


def clip() -> Export:
    text = SIZES | {"max_position_embeddings": 32, "eos_token_id": 2, "projection_dim": 32}
    image = {k: v for k, v in PATCHES.items() if k != "vocab_size"} | {"projection_dim": 32}
    model = hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=image, projection_dim=32))
    tokens, images = {0: "texts", 1: "seq"}, {0: "images"}
    inputs = {
        "input_ids": (ids(), tokens),
        "pixel_values": (torch.randn(3, 3, 32, 32), images),
        "attention_mask": (torch.ones_like(ids()), tokens),
    }
    outputs = {
        "logits_per_image": {0: "images", 1: "texts"},
        "text_embeds": {0: "texts"},
        "image_embeds": images,
    }
    return call(model, inputs, outputs)


MODELS: dict[str, Callable[[], Export]] = {
    f.__name__: f
    for f in (
        bert, distilbert, gpt2, llama, qwen2, mistral, mistral_window, mamba, t5, whisper,
        whisper_decoder, vit, clip,
    )
}  # fmt: skip


def make(function: str, variant: str, path: Path) -> None:
    """Write the model MODELS[function] by the exporter `variant`."""
    torch.manual_seed(0)
    write(MODELS[function](), variant, path)
