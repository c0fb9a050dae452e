"""Llama presets, from a toy of 0.2M parameters to the paper's 7B, always initialised from scratch.

The paper trains Llama 2's architecture with random weights (Section III). Only widths and depths
differ here; vocabulary and seed come from the caller. Training lives in `train`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from llmopt.config import InputError, nearest


@dataclass(frozen=True)
class Preset:
    """The shape of a Llama. `width` is the hidden size, `ffn` the inner size of the gated MLP.

    Small models tie the output layer to the embedding: at these sizes a second vocabulary matrix
    would cost more parameters than several layers.
    """

    layers: int
    heads: int
    width: int
    ffn: int
    context: int = 2048
    tied: bool = True


PRESETS = {
    "smoke": Preset(layers=2, heads=2, width=64, ffn=160),
    "classroom": Preset(layers=4, heads=4, width=128, ffn=352),
    "reference": Preset(layers=8, heads=8, width=256, ffn=704),
    "small": Preset(layers=12, heads=8, width=512, ffn=1408),
    "medium": Preset(layers=16, heads=16, width=1024, ffn=2816),
    "llama2-7b": Preset(layers=32, heads=32, width=4096, ffn=11008, tied=False),
}


def shape(preset: str) -> Preset:
    """The preset of that name; raises `InputError` on an unknown one."""
    if preset not in PRESETS:
        raise InputError(
            f"unknown model preset {preset!r}{nearest(preset, PRESETS)}: "
            f"use one of {', '.join(PRESETS)}"
        )
    return PRESETS[preset]


def llama_config(preset: str, vocab_size: int, **special_tokens: int) -> LlamaConfig:
    """The `transformers` configuration of a preset, without any download or template."""
    p = shape(preset)
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=p.width,
        intermediate_size=p.ffn,
        num_hidden_layers=p.layers,
        num_attention_heads=p.heads,
        num_key_value_heads=p.heads,
        max_position_embeddings=p.context,
        tie_word_embeddings=p.tied,
        # Llama's 0.02 suits a width of thousands; a narrow model wants about 1/sqrt(width).
        initializer_range=max(0.02, 0.5 * p.width**-0.5),
        **{"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **special_tokens},
    )


def build(preset: str, vocab_size: int, seed: int, **special_tokens: int) -> LlamaForCausalLM:
    """A Llama with random float32 weights; the same seed gives the same weights.

    `special_tokens` are `pad_token_id` and `eos_token_id`, kept with the model's configuration.
    The caller's random state is left alone.
    """
    if vocab_size < 1:
        raise InputError(f"a vocabulary of {vocab_size} tokens: pass the tokenizer's size")
    config = llama_config(preset, vocab_size, **special_tokens)
    config._attn_implementation = "sdpa"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def parameters(preset: str, vocab_size: int = 32000) -> int:
    """Number of trainable parameters (tied ones once), counted on the meta device: no memory."""
    with torch.device("meta"):
        model = LlamaForCausalLM(llama_config(preset, vocab_size))
    return sum(p.numel() for p in model.parameters())
