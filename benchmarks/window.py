"""What does not fit a context window, and what of the gain lies there.

All functions of the scale's test projects, those that are too long for its corpus included: tokens
of prompt and answer by the released model's tokenizer, instructions, and what the best list of the
coreset saves over -Oz. For the too long ones that gain is measured on the first `searched` by id, a
uniform sample. Journalled: killed and called again, it goes on.
"""

from functools import partial

import pandas as pd
from tqdm import tqdm

from llmopt import config, journal, pipeline, sources, tokenizer, window


def _task(item: tuple[str, int, bool], tok, lists) -> dict:
    text, before, searched = item
    return {"rows": window.of_long(text, before, tok, lists if searched else None)}


def measure(searched: int = 300) -> tuple[pd.DataFrame, list[str]]:
    """A row a function and protocol (`window.of_example`, `project`, `suite`), and the names of
    sources that cannot be had now."""
    model = pipeline.find_model(None)
    scale, tok = config.scale(), tokenizer.load(model)
    known = pd.DataFrame([window.of_example(e, tok) for e in pipeline.examples("test")])
    about = pipeline.test_functions()[["id", "project", "suite"]].drop_duplicates("id")
    known = known.merge(about, on="id")
    chosen = [s for s in sources.manifest() if scale.name in s.scales and s.split == "test"]
    made_of = (pipeline.corpus_folder().name, pipeline.model_digest(model), pipeline.coreset())
    folder = pipeline.stage("window", ("window",), made_of)
    with journal.workers() as pool, tqdm(desc="read", unit="file", disable=None) as bar:
        long, missing = window.beyond(
            chosen, scale.max_chars, folder, pool, lambda key, value: bar.update()
        )
    items = {
        f"{row.id}:{at < searched}": (row.ir, row.unoptimised, at < searched)
        for at, row in enumerate(long.itertuples())
    }
    task = partial(_task, tok=tok, lists=pipeline.coreset())
    with (
        journal.Journal(folder / "long.sqlite") as done,
        journal.workers() as pool,
        tqdm(total=len(items), desc="long functions", disable=None) as bar,
    ):
        bar.update(len(done.keys() & items.keys()))
        journal.run(done, task, items, pool, lambda key, value: bar.update())
        rows = [row for key in items for row in done.get(key)["rows"]]
    found = pd.DataFrame(rows, columns=known.columns.drop(["project", "suite"]))
    found = found.merge(long[["id", "project", "suite"]], on="id")
    numbers = ["characters", "unoptimised", "prompt", "answer", "oz", "coreset", "best"]
    table = pd.concat([known, found], ignore_index=True)
    return table.astype(dict.fromkeys(numbers, "Int32")), missing
