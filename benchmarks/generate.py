"""How fast are answers generated, beside `transformers`' own `generate` on the same prompts?

Both read the same prompts of test functions in batches of one size, in float32, greedily: pass
lists alone, as in deployment, and whole answers. Tokens are compared, too: speed that changes
answers would be worth nothing.
"""

import time

import torch

from llmopt import generate, model, pipeline, prompt
from llmopt.config import PROTOCOLS, InputError
from llmopt.tokenizer import BEFORE, END, PAD, PASSES

BATCH = 32


def plain(llama, tok, functions, most: int, last: str) -> list[str]:
    """The answers as text, by `transformers` alone."""
    asked = [
        [*prompt.encode_prompt(text, protocol, tok)[0], tok.ids[PASSES]]
        for text, protocol in functions
    ]
    order = sorted(range(len(asked)), key=lambda i: len(asked[i]))
    made = [""] * len(asked)
    for at in range(0, len(order), BATCH):
        batch = order[at : at + BATCH]
        width = max(len(asked[i]) for i in batch)
        ids = torch.tensor([[tok.ids[PAD]] * (width - len(asked[i])) + asked[i] for i in batch])
        mask = torch.tensor([[0] * (width - len(asked[i])) + [1] * len(asked[i]) for i in batch])
        output = llama.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=most,
            do_sample=False,
            pad_token_id=tok.ids[PAD],
            eos_token_id=tok.ids[last],
        )
        for i, row in zip(batch, output[:, width:].tolist(), strict=True):
            row = row[: row.index(tok.ids[PAD])] if tok.ids[PAD] in row else row
            made[i] = PASSES + tok.decode(row)
    return made


def measure(folder, functions: int, max_new_tokens: int) -> dict:
    llama, tok = model.load(folder)
    texts = list(pipeline.test_functions().ir.head(functions))
    asked = [(text, protocol) for text in texts for protocol in PROTOCOLS]
    room = llama.config.max_position_embeddings - max_new_tokens
    asked = [pair for pair in asked if len(prompt.encode_prompt(*pair, tok)[0]) < room]
    if not asked:
        raise InputError(
            f"no prompt leaves room for {max_new_tokens} tokens: take a smaller answer"
        )
    result = {"functions": len(asked), "batch": BATCH, "threads": torch.get_num_threads()}
    for what, most, last in (("lists", 11, BEFORE), ("answers", max_new_tokens, END)):
        started = time.perf_counter()
        ours = generate.greedy(llama, tok, asked, most, what == "lists", BATCH)
        between = time.perf_counter()
        theirs = plain(llama, tok, asked, most, last)
        ended = time.perf_counter()
        tokens = sum(one.tokens for one in ours)
        result[what] = {
            "tokens": tokens,
            "seconds": between - started,
            "seconds_transformers": ended - between,
            "functions_per_second": len(asked) / (between - started),
            "tokens_per_second": tokens / (between - started),
            "ratio": (ended - between) / (between - started),
            "same": sum(a.text == b for a, b in zip(ours, theirs, strict=True)) / len(asked),
        }
    return result
