"""LLVM in process against an `opt` process a list: the same functions and lists, in one run.

In process, a candidate list costs what the autotuner pays for it: a fresh copy of the module
(parsed again), the passes, verifying and counting. For `opt` it is the process from IR text to
counted result. Ratios, not times, are what to compare between machines.
"""

import statistics
import time

from llmopt import config, llvm, pipeline

THREE = ("sroa<modify-cfg>", "instcombine<no-verify-fixpoint>", "simplifycfg")


def milliseconds(run, items: list, names: tuple[str, ...]) -> tuple[float, list[int]]:
    """Median wall time over the functions, and the counts as proof that both did the same."""
    times, counts = [], []
    for item in items:
        started = time.perf_counter()
        result = run(item, names)
        times.append(1000 * (time.perf_counter() - started))
        counts.append(result.count)
    return statistics.median(times), counts


def through_opt(text: str, names: tuple[str, ...]) -> llvm.Run:
    return llvm.opt(text, "stripped", names)


def compare(texts: list[str], names: tuple[str, ...]) -> dict:
    modules = [llvm.Module(text) for text in texts]
    ours, counts = milliseconds(llvm.apply, modules, names)
    theirs, check = milliseconds(through_opt, texts, names)
    for module in modules:
        module.close()
    if counts != check:
        raise AssertionError("the two ways disagree on counts: do not trust the times")
    return {"ms_in_process": ours, "ms_opt": theirs, "ratio": theirs / ours}


def measure(functions: int) -> dict:
    texts = list(pipeline.test_functions().ir.head(functions))
    return {
        "functions": len(texts),
        "scale": config.scale().name,
        **compare(texts, ("-Oz",)),
        "three_passes": {"passes": list(THREE), **compare(texts, THREE)},
        "llvm": llvm.version(),
    }
