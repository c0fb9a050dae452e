"""LLVM in process against an `opt` process a list: the same functions and lists, in one run.

Both times hold everything from IR text to instruction count. Ratios, not times, are what to
compare between machines.
"""

import statistics
import time

from llmopt import config, llvm, pipeline

THREE = ("sroa<modify-cfg>", "instcombine<no-verify-fixpoint>", "simplifycfg")


def in_process(text: str, names: tuple[str, ...]) -> llvm.Run:
    with llvm.Module(text, "stripped") as module:
        return llvm.apply(module, names)


def through_opt(text: str, names: tuple[str, ...]) -> llvm.Run:
    return llvm.opt(text, "stripped", names)


def milliseconds(run, texts: list[str], names: tuple[str, ...]) -> tuple[float, list[int]]:
    """Median wall time over the functions, and the counts as proof that both did the same."""
    times, counts = [], []
    for text in texts:
        started = time.perf_counter()
        result = run(text, names)
        times.append(1000 * (time.perf_counter() - started))
        counts.append(result.count)
    return statistics.median(times), counts


def compare(texts: list[str], names: tuple[str, ...]) -> dict:
    in_process(texts[0], names)  # loading the library is no part of it
    ours, counts = milliseconds(in_process, texts, names)
    theirs, check = milliseconds(through_opt, texts, names)
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
