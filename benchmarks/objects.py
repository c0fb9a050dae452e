"""Instructions against bytes: the recorded evaluation's lists through LLVM's code generator.

For the scale's test functions that are in the record, under both protocols: what each method's
list leaves, in instructions and in bytes of an x86-64 object. Sizes, not times: the result does not
depend on the machine. Journalled: killed and called again, it goes on.
"""

import threading

import pandas as pd
from tqdm import tqdm

from llmopt import journal, objects, passes, pipeline, records
from llmopt.config import InputError

_LOCAL = threading.local()


def _task(item: tuple[str, str, str]) -> dict:
    text, protocol, listed = item
    if not hasattr(_LOCAL, "generator"):
        _LOCAL.generator = objects.Generator()
    return {"rows": objects.measure(text, protocol, [passes.parse(listed)], _LOCAL.generator)}


def measure(functions: int | None = None) -> pd.DataFrame:
    """A row a function, protocol and list: `id protocol passes count code constants`."""
    rows = records.read("evaluation")
    texts = pipeline.test_functions().drop_duplicates("id").set_index("id").ir
    ids = sorted(set(rows.id) & set(texts.index))[:functions]
    if not ids:
        raise InputError("no test function of this scale is in results/evaluation.parquet")
    rows = rows[rows.id.isin(ids)][objects.KEY]
    oz = rows.assign(passes=passes.format(passes.OZ))
    rows = pd.concat([rows, oz]).drop_duplicates().sort_values(objects.KEY)
    items = {
        f"{row.id}:{row.protocol}:{row.passes}": (texts[row.id], row.protocol, row.passes)
        for row in rows.itertuples()
    }
    path = pipeline.stage("objects", ("objects",), ()).with_suffix(".sqlite")
    with (
        journal.Journal(path) as done,
        journal.workers() as pool,
        tqdm(total=len(items), desc="objects", disable=None) as bar,
    ):
        bar.update(len(done.keys() & items.keys()))
        journal.run(done, _task, items, pool, lambda key, value: bar.update())
        found = dict(done.items())
    made = [
        {"id": row.id, "protocol": row.protocol} | one
        for row, key in zip(rows.itertuples(), items, strict=True)
        for one in found[key]["rows"]
    ]
    return pd.DataFrame(made).astype(dict.fromkeys(["count", "code", "constants"], "int32"))
