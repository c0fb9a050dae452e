"""Llama presets, from a toy of 0.2M parameters to the paper's 7B, always initialised from scratch.

The paper trains Llama 2's architecture with random weights (Section III). Only widths and depths
differ here; vocabulary and seed come from the caller. Models live in folders as Hugging Face lays
them out. Training lives in `train`.
"""

from __future__ import annotations

import ctypes
import json
import shutil
import timeit
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import Cache, DynamicCache, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from llmopt import tokenizer
from llmopt.config import InputError, nearest
from llmopt.tokenizer import Tokenizer


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
    "classroom": Preset(layers=4, heads=2, width=128, ffn=352),
    "reference": Preset(layers=6, heads=2, width=256, ffn=704),
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


def read(
    llama: LlamaForCausalLM,
    ids: torch.Tensor,
    cache: Cache,
    mask: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """Hidden states (B, Q, width) of `ids` (B, Q), whose keys and values join the cache. `mask`
    (B, 1, Q, what is in the cache + Q) is true where an id sees another; without one, and with an
    empty cache, ids see those before them."""
    if mask is not None and llama.config._attn_implementation == "eager":  # it adds its mask
        lowest = torch.finfo(torch.bfloat16).min
        mask = torch.zeros_like(mask, dtype=torch.bfloat16).masked_fill(~mask, lowest)
    return llama.model(
        input_ids=ids,
        past_key_values=cache,
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
    ).last_hidden_state


def answer(llama: LlamaForCausalLM, prompts, answers, mask, positions) -> torch.Tensor:
    """Hidden states (B, P + Q, width) of prompts (B, P) and of the branches that follow each
    (`dataset.Batch`): prompts are read once, causally, whatever the number of their branches."""
    cache = DynamicCache(config=llama.config)
    asked = read(llama, prompts, cache)
    return torch.cat([asked, read(llama, answers, cache, mask, positions.clamp(min=0))], dim=1)


def prefer_speed(llama: LlamaForCausalLM, halves: bool) -> None:
    """Settings that make training on a processor 1.2 to 1.4 times as fast (`benchmarks/train.py`).

    The fused attention has no fast backward pass in bfloat16 there, plain matrix products have
    one (`halves`: they run in bfloat16). And what a step frees, the next one wants again: the C
    library would give it back to the system, page by page.
    """
    if halves:
        llama.set_attn_implementation("eager")
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):  # glibc's
        mallopt(-4, 0)  # M_MMAP_MAX
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD, in bytes


def fast_precision(device: str = "cpu") -> str:
    """The precision of matrix products that is fastest there: "bf16" on accelerators and on
    processors on which it pays, else "no", for float32."""
    if torch.device(device).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "no"
    return "bf16" if _bfloat16_pays() else "no"


@lru_cache
def _bfloat16_pays() -> bool:
    """Whether this processor multiplies much faster in bfloat16 than in float32. That it has
    instructions for it does not tell: one with them was seen to be four times as fast, another half
    as fast. So a product is timed, the best of ten, which takes a few milliseconds; half as fast
    again is asked for, so that noise does not decide."""
    if not has_bfloat16():
        return False
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.ones(512, 512, dtype=dtype)
        best[dtype] = min(timeit.repeat(lambda square=square: square @ square, number=1, repeat=10))
    return 1.5 * best[torch.bfloat16] < best[torch.float32]


def has_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16."""
    return bool(torch.cpu.get_capabilities().get("avx512_bf16"))


def fast(device: torch.device) -> torch.autocast:
    """A context in which matrix products run in `fast_precision`."""
    enabled = fast_precision(device) == "bf16"
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=enabled)


# --- model folders -----------------------------------------------------------------------------


def export(
    llama: LlamaForCausalLM,
    tok: Tokenizer,
    folder: Path,
    weights: dict[str, torch.Tensor] | None = None,
    **beside: object,
) -> None:
    """Write a model folder, whole or not at all: weights as safetensors, configuration, tokenizer,
    and each of `beside` as `NAME.json`. `weights` are the model's own where they are sharded."""
    partial = folder.with_name(f".partial-{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    logging.disable_progress_bar()
    if weights and llama.config.tie_word_embeddings:
        weights = {name: t for name, t in weights.items() if name != "lm_head.weight"}
    llama.save_pretrained(partial, state_dict=weights)
    tok.save(partial)
    for name, value in beside.items():
        (partial / f"{name}.json").write_text(json.dumps(value, indent=1) + "\n")
    partial.replace(folder)


def load(folder: Path) -> tuple[LlamaForCausalLM, Tokenizer]:
    """A trained model in float32, ready to generate, and its tokenizer, from a Hugging Face folder.

    Only safetensors are read, nothing is downloaded or unpickled. Raises `InputError` that names
    the file where one is missing, damaged, or does not fit the others.
    """
    folder = Path(folder)
    tok = tokenizer.load(folder)
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text())
        if values.get("model_type") != "llama":
            raise ValueError("not a Llama's")
        config = LlamaConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a foreign file can upset the library in many ways
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: no usable configuration ({reason}); train again") from None
    logging.disable_progress_bar()
    weights = folder / "model.safetensors"
    if len(tok) != config.vocab_size:
        raise InputError(
            f"{path}: {config.vocab_size} tokens, but tokenizer.json has {len(tok)}; "
            "use the tokenizer that the model was trained with"
        )
    try:
        with safe_open(weights, "pt"):  # headers and sizes are checked on opening
            pass
        llama, info = LlamaForCausalLM.from_pretrained(
            folder,
            config=config,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            attn_implementation="sdpa",
            dtype="auto",
        )
    except Exception as error:  # config.json may hold a shape that cannot be built, too
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{weights}: not readable weights ({reason}); train again") from None
    odd = [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]
    if odd:
        raise InputError(f"{weights}: {len(odd)} tensors do not fit config.json, {odd[0]} first")
    return llama.float().eval(), tok  # processors are slow on halves, in which it may be stored
