"""Are the released labels true? Each is run again through the `opt` executable.

The labels were made by libLLVM in process, walk by walk; `opt` is another build of LLVM, reads the
function from text and runs the list as one pipeline in a process of its own. On a random sample of
the labelled functions, under both protocols, the counts of the function as it is, after -Oz and
after the label's list must be those recorded.
"""

import json
import random
import time

from tqdm import tqdm

from llmopt import config, headroom, journal, llvm, pipeline
from llmopt import labels as labelling

SEED = 0
CHUNK = 20  # labels a task


def measure(functions: int) -> dict:
    """The check as a JSON value. `functions` are sampled from those that the scale's corpus has."""
    started = time.time()
    labels = labelling.read(labelling.RELEASED)
    corpus = pipeline.functions()[["id", "ir"]]
    ids = sorted(set(labels.id) & set(corpus.id))
    sample = random.Random(SEED).sample(ids, min(functions, len(ids)))
    rows = labels[labels.id.isin(sample)].merge(corpus, on="id")
    chunks = [rows[at : at + CHUNK] for at in range(0, len(rows), CHUNK)]
    wrong: list[dict] = []
    with journal.workers() as pool, tqdm(total=len(rows), desc="check", disable=None) as bar:
        for found in pool.map(headroom.recount, chunks):
            differ = found[~found.same].drop(columns=["ir", "same"])
            wrong += json.loads(differ.to_json(orient="records"))  # opt may give no count at all
            bar.update(len(found))
    return {
        "command": f"llmopt bench labels --functions {functions} --scale {config.scale().name}",
        "functions": len(sample),
        "labels": len(rows),
        "not_oz": int((rows.passes != "-Oz").sum()),
        "differences": wrong,
        "llvm": llvm.version(),
        "seconds": round(time.time() - started, 1),
    }
