"""What pays in training? One change at a time, everything else the same.

Each run trains the same small model from the same seed on the same functions for the same number
of tokens, and is judged on validation functions that it has not seen: the losses of the parts of an
answer, the instructions that its choice of lists saves, and the code that it writes. The base comes
first; a lever that does not beat it is not in the recipe.
"""

import atexit
import datetime
import json
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, replace
from itertools import accumulate, takewhile
from pathlib import Path

from llmopt import config, dataset, pipeline, prompt, tokenizer, train, validation
from llmopt import model as models
from llmopt.config import InputError
from llmopt.prompt import Example

BASE = train.TrainConfig(preset="classroom", steps=1)
MAX_TOKENS = 1024  # longer functions cost most of the time and are a sixth of all
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
    "rate x 4": ("four times the learning rate", {"learning_rate": BASE.learning_rate * 4}),
    "batch x 4": ("batches four times as large", {"tokens_per_batch": 4 * BASE.tokens_per_batch}),
    "no prompt": ("the prompt is not learned", {"prompt_weight": 0.0}),
    "prompt / 4": ("a fourth of the prompt's tokens is learned", {"prompt_every": 4}),
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
    "code x 3": ("short functions, with code, three times as often", {"code_repeats": 3}),
    "a quarter of the data": ("a quarter of the functions, four times as often", {"share": 4}),
    "a sixteenth of the data": ("a sixteenth, sixteen times as often", {"share": 16}),
    "names as printed": ("neither names nor alignments are shortened", {}),
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
    bench = Bench([e for e in every if e.id in chosen], pipeline.examples("valid"))
    rows = []
    for name in names or LEVERS:
        what, changes = LEVERS[name]
        plain = name == "names as printed"
        rows.append({"name": name, "what": what} | bench.run(tokens, preset, changes, plain))
        print(json.dumps(rows[-1]), flush=True)
    return rows


@contextmanager
def as_printed(plain: bool):
    """Prompts in the IR as it is, if `plain`."""
    kept = prompt.shorten, prompt.shorten_alike, prompt.lengthen
    if plain:
        prompt.shorten = lambda text: (text, {})
        prompt.shorten_alike = prompt.lengthen = lambda text, names: text
    try:
        yield
    finally:
        prompt.shorten, prompt.shorten_alike, prompt.lengthen = kept


class Bench:
    """The functions of all runs; what is made of them is kept for the runs that want the same."""

    def __init__(self, known: list[Example], held: list[Example]):
        self.known, self.held, self.made = known, held, {}

    def prepared(self, plain: bool, taught: dict, share: int) -> tuple:
        """Tokenizer, tokens of every `share`-th training function, validation tokens."""
        key = plain, repr(taught), share
        if key not in self.made:
            texts = (text for e in self.known for text in pipeline.texts(e))
            chosen = set(sorted({e.id for e in self.known})[::share])
            known = [e for e in self.known if e.id in chosen]
            tok = tokenizer.train(texts, config.scale().vocabulary)
            folder = Path(tempfile.mkdtemp(prefix="llmopt-lever-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            scale = config.scale()
            data = (
                dataset.prepare(
                    some, tok, MAX_TOKENS, folder / name, code_tokens=scale.code_tokens, **taught
                )
                for name, some in (("train", known), ("valid", self.held))
            )
            self.made[key] = (tok, *data)
        return self.made[key]

    def run(self, tokens: int, preset: str, changes: dict, plain: bool) -> dict:
        """One run of `tokens` tokens with its recipe and what came of it."""
        taught = {name: changes[name] for name in ("tasks", "stakes") if name in changes}
        share = changes.get("share", 1)
        changes = {k: v for k, v in changes.items() if k not in taught and k != "share"}
        recipe = replace(BASE, preset=preset, precision=models.fast_precision(), **changes)
        with as_printed(plain), tempfile.TemporaryDirectory(prefix="llmopt-lever-") as folder:
            tok, data, held = self.prepared(plain, taught, share)
            judge = validation.Curves(
                tok, self.held, pipeline.coreset(), functions=1000, written=64
            )
            stream = dataset.batches(
                data, recipe.tokens_per_batch, recipe.seed, recipe.curriculum, recipe.code_repeats
            )
            seen = accumulate(int(data.functions[rows][:, [1, 4]].sum()) for rows in stream)
            steps = 1 + sum(1 for _ in takewhile(lambda so_far: so_far < tokens, seen))
            recipe = replace(recipe, steps=steps, validate_every=steps, checkpoint_every=steps)
            train.train(data, held, tok, recipe, Path(folder), judge=judge)
            last = json.loads((Path(folder) / "log.jsonl").read_text().splitlines()[-1])
        return {
            "date": datetime.date.today().isoformat(),
            "scale": config.scale().name,
            "functions": len(data.functions),
            "result": {key: value for key, value in last.items() if key not in ("rate", "norm")},
            "recipe": asdict(recipe) | {name: repr(value) for name, value in taught.items()},
        }
