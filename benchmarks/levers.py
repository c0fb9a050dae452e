"""What pays in training? One change at a time, everything else the same.

Each run trains the same small model from the same seed on the same functions for the same number
of tokens, and is judged on validation functions that it has not seen: the losses of the parts of an
answer, the instructions that its choice of lists saves, and the code that it writes. The base comes
first; a lever that does not beat it is not in the recipe.
"""

import datetime
import json
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path

from llmopt import config, dataset, ir, pipeline, tokenizer, train, validation
from llmopt import model as models
from llmopt.config import InputError

BASE = train.TrainConfig(preset="classroom", steps=1)
MAX_TOKENS = 1024
# name: (what is changed, settings of the run or of its tokens that differ from the base)
LEVERS = {
    "base": ("nothing", {}),
    "adamw": ("AdamW for all weights, as in the paper", {"optimizer": "adamw"}),
    "adamw, slower": (
        "AdamW at a third of the rate",
        {"optimizer": "adamw", "learning_rate": BASE.learning_rate / 3},
    ),
    "rate / 2": ("half the learning rate", {"learning_rate": BASE.learning_rate / 2}),
    "rate x 2": ("twice the learning rate", {"learning_rate": BASE.learning_rate * 2}),
    "batch x 4": ("batches four times as large", {"tokens_per_batch": 4 * BASE.tokens_per_batch}),
    "no prompt": ("the prompt is not learned", {"prompt_weight": 0.0}),
    "list x 1": ("a list's token weighs as much as any", {"list_weight": 1.0}),
    "list x 32": ("a list's token weighs 32 times as much", {"list_weight": 32.0}),
    "best list only": (
        "only the best list is taught, as in the paper",
        {"stakes": dataset.Stakes(temperature=0.0)},
    ),
    "softer lists": ("lists share the loss more evenly", {"stakes": dataset.Stakes(3.0)}),
    "short first": ("short functions first", {"curriculum": 2.0}),
    "list alone": ("neither counts nor code", {"tasks": ("list",)}),
    "no code": ("list and counts, no code", {"tasks": ("list", "counts")}),
    "names as printed": ("symbols are not renamed", {}),
}


def measure(names: list[str] | None, functions: int, tokens: int, preset: str) -> list[dict]:
    """A row a lever (all, or those named), printed as it is made, from runs of `tokens` tokens over
    the first `functions` of the train split."""
    for name in names or ():
        if name not in LEVERS:
            raise InputError(
                f"no lever {name!r}{config.nearest(name, LEVERS)}: use {', '.join(LEVERS)}"
            )
    every = pipeline.examples("train")
    chosen = set(sorted({e.id for e in every})[:functions])
    known = [e for e in every if e.id in chosen]
    held, lists = pipeline.examples("valid"), pipeline.coreset()
    rows = []
    for name in names or LEVERS:
        what, changes = LEVERS[name]
        if name == "names as printed":
            kept, ir.rename = ir.rename, lambda text: (text, {})
        try:
            rows.append(
                {"name": name, "what": what}
                | _run(known, held, lists, tokens, {"preset": preset} | changes)
            )
        finally:
            if name == "names as printed":
                ir.rename = kept
        print(json.dumps(rows[-1]), flush=True)
    return rows


def _run(known, held, lists, tokens: int, changes: dict) -> dict:
    texts = (text for e in known for text in pipeline.texts(e))
    tok = tokenizer.train(texts, 4096)
    judge = validation.Curves(tok, held, lists, functions=1000, written=100)
    taught = {name: changes[name] for name in ("tasks", "stakes") if name in changes}
    changes = {name: value for name, value in changes.items() if name not in taught}
    recipe = replace(BASE, precision=models.fast_precision(), **changes)
    started = time.time()
    with tempfile.TemporaryDirectory(prefix="llmopt-lever-") as folder:
        path = Path(folder)
        data, valid = (
            dataset.prepare(some, tok, MAX_TOKENS, path / name, **taught)
            for name, some in (("train", known), ("valid", held))
        )
        stream = dataset.batches(data, recipe.tokens_per_batch)
        few = [dataset.collate(data, next(stream), 0).tokens for _ in range(20)]
        steps = max(1, round(tokens * len(few) / sum(few)))
        recipe = replace(recipe, steps=steps, validate_every=steps, checkpoint_every=steps)
        train.train(data, valid, tok, recipe, path, judge=judge)
        last = json.loads((path / "log.jsonl").read_text().splitlines()[-1])
    return {
        "date": datetime.date.today().isoformat(),
        "scale": config.scale().name,
        "functions": len({e.id for e in known}),
        "seconds": round(time.time() - started),
        "result": {key: value for key, value in last.items() if key not in ("rate", "norm")},
        "recipe": asdict(recipe) | {name: repr(value) for name, value in taught.items()},
    }
