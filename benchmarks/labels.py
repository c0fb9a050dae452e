"""Are the released labels true? Each is run again through the `opt` executable.

The labels were made by libLLVM in process, walk by walk; `opt` is another build of LLVM, reads the
function from text and runs the list as one pipeline in a process of its own. On a random sample of
the labelled functions, under both protocols, the counts of the function as it is, after -Oz and
after the label's list must be those recorded.
"""

import random
import time

from tqdm import tqdm

from llmopt import config, journal, llvm, passes, pipeline
from llmopt import labels as labelling

SEED = 0


def differences(row: tuple) -> list[dict]:
    """What `opt` counts otherwise, for a label as (id, protocol, ir, passes, recorded counts)."""
    key, protocol, text, listed, recorded = row
    lists = {"unoptimised": (), "oz": passes.OZ, "best": passes.parse(listed)}
    found = []
    for name, names in lists.items():
        run = llvm.opt(text, protocol, names)
        if run.count != recorded[name]:
            what = {"recorded": recorded[name], "opt": run.count, "status": run.status}
            found.append({"id": key, "protocol": protocol, "count": name, "passes": listed} | what)
    return found


def measure(functions: int) -> dict:
    """The check as a JSON value. `functions` are sampled from those that the scale's corpus has."""
    started = time.time()
    labels = labelling.read(labelling.RELEASED)
    corpus = pipeline.functions().set_index("id").ir
    ids = sorted(set(labels.id) & set(corpus.index))
    sample = set(random.Random(SEED).sample(ids, min(functions, len(ids))))
    rows = [
        (row.id, row.protocol, corpus[row.id], row.passes, row._asdict())
        for row in labels[labels.id.isin(sample)].itertuples()
    ]
    wrong: list[dict] = []
    with journal.workers() as pool, tqdm(total=len(rows), desc="check", disable=None) as bar:
        for found in pool.map(differences, rows):
            wrong += found
            bar.update()
    return {
        "command": f"llmopt bench labels --functions {functions} --scale {config.scale().name}",
        "functions": len(sample),
        "labels": len(rows),
        "not_oz": sum(row[3] != "-Oz" for row in rows),
        "differences": wrong,
        "opt": str(llvm.find_opt().name),
        "llvm": llvm.version(),
        "seconds": round(time.time() - started, 1),
    }
