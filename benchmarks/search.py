"""What a compilation buys: uniform random lists, as in the paper, against our search.

On validation functions, both protocols: the improvement over -Oz of all functions together after so
many compilations each. Ours is the search that makes the labels, with the lists that it starts
from there (they come from training functions), but without its patience. Counts, not times, so the
result does not depend on the machine; and how fast the search goes, as a share of a bare loop over
`LLVMRunPasses` on the same lists. Journalled: killed and called again, it goes on.
"""

import hashlib
import random
import time
from functools import partial

from tqdm import tqdm

from llmopt import autotune, config, headroom, journal, labels, llvm, passes, pipeline, sandbox
from llmopt.config import PROTOCOLS


def uniform(item: tuple[str, str, str], marks: list[int]) -> dict:
    key, text, protocol = item
    oz, curve = headroom.uniform_curve(text, protocol, marks, key)
    return {"oz": oz, "curve": curve}


def ours(item: tuple[str, str, str], marks: list[int], known: dict[str, labels.Known]) -> dict:
    key, text, protocol = item
    oz, curve = headroom.our_curve(text, protocol, known[protocol], marks, key)
    return {"oz": oz, "curve": curve}


def bare(texts: list[str], lists: list[tuple[str, ...]]) -> float:
    """Seconds for a loop that only copies the module and calls `LLVMRunPasses`."""
    modules = [llvm.Module(text) for text in texts]
    pipelines = [passes.pipeline(names) for names in lists]
    started = time.perf_counter()
    for module in modules:
        for text in pipelines:
            with module.copy() as copy:
                copy.run(text)
    seconds = time.perf_counter() - started
    for module in modules:
        module.close()
    return seconds


def walked(texts: list[str], lists: list[tuple[str, ...]], table: bool) -> float:
    box = sandbox.shared()
    box.run(texts[0], "stripped", [()])  # the worker has started
    started = time.perf_counter()
    for text in texts:
        if table:
            box.explore(text, "stripped", lists)
        else:
            box.walk(text, "stripped", lists)
    return time.perf_counter() - started


def safe(texts: list[str], lists: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Lists on which LLVM comes to its end on every function: the bare loop has no sandbox."""
    box = sandbox.shared()
    for text in texts:
        runs = box.run(text, "stripped", lists)
        lists = [names for names, run in zip(lists, runs, strict=True) if run.ok]
    return lists


def throughput(texts: list[str]) -> dict:
    """Lists a second on one core: the bare loop, plain walks, walks with the table."""
    rng = random.Random(0)
    lists = safe(texts, [autotune.random_list(rng) for _ in range(200)])
    count = len(lists) * len(texts)
    rates = {
        "bare_loop": count / bare(texts, lists),
        "walks": count / walked(texts, lists, table=False),
        "walks_with_table": count / walked(texts, lists, table=True),
    }
    shares = {f"{name}_share": rates[name] / rates["bare_loop"] for name in list(rates)[1:]}
    return {"functions": len(texts), "lists": len(lists), "per_second": rates, **shares}


def measure(functions: int, most: int) -> dict:
    """The result as a JSON value; `most` compilations a function and method."""
    rows = pipeline.functions()
    rows = rows[rows.split == "valid"].head(functions)
    marks = [mark for mark in headroom.MARKS if mark <= most]
    known = labels.known()
    value = {
        "scale": config.scale().name,
        "functions": len(rows),
        "compilations": marks,
        "llvm": llvm.version(),
        "protocols": {},
    }
    code = config.fingerprint("autotune")
    key = hashlib.sha256(repr((code, known, llvm.version(), most, marks)).encode()).hexdigest()[:10]
    folder = config.home() / "bench"
    with journal.workers() as pool, tqdm(total=4 * len(rows), desc="search", disable=None) as bar:
        for protocol in PROTOCOLS:
            items = {row.id: (row.id, row.ir, protocol) for row in rows.itertuples()}
            found = value["protocols"][protocol] = {}
            for name, task in (
                ("random", partial(uniform, marks=marks)),
                ("ours", partial(ours, marks=marks, known=known)),
            ):
                with journal.Journal(folder / f"search-{name}-{protocol}-{key}.sqlite") as done:
                    journal.run(done, task, items, pool, lambda key, row: bar.update())
                    results = [row for row_key, row in done.items() if row_key in items]
                oz = sum(row["oz"] for row in results)
                found["oz"] = oz
                found[name] = [
                    100 * (oz - sum(row["curve"][at] for row in results)) / oz
                    for at in range(len(marks))
                ]
    value["throughput"] = throughput(list(rows.ir.head(20)))
    return value
