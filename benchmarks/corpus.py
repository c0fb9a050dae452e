"""What does the corpus cost, and is it the one that the labels were made for?

The scale's corpus is fetched, compiled and split from nothing, in a folder of its own, and its
functions are joined with the released labels by their ids.
"""

import os
import resource
import tempfile
import time

import pandas as pd

from llmopt import config, frontend, llvm, pipeline
from llmopt import labels as labelling


def _core_seconds() -> float:
    """Seconds of processor time, of this process and of those that it has waited for."""
    used = [resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measure() -> dict:
    """The rebuild as a JSON value. `seconds` are of the clock and hang on what else the machine
    does, `core_seconds` are of its processors. `unlabelled` functions are asked for by the scale
    and have no released label, `lost` ones have one and are not asked for. At the scale that the
    labels were made at there should be none of either; at others, where another project has the
    same function, another copy may have been kept."""
    before = os.environ.get("LLMOPT_HOME")
    labels = labelling.read(labelling.RELEASED)
    with tempfile.TemporaryDirectory(prefix="llmopt-corpus-") as home:
        os.environ["LLMOPT_HOME"] = home
        try:
            started, before_it = time.time(), _core_seconds()
            report = pipeline.report()
            seconds, spent = time.time() - started, _core_seconds() - before_it
            wanted = pipeline.wanted().id
        finally:
            os.environ.pop("LLMOPT_HOME")
            if before is not None:
                os.environ["LLMOPT_HOME"] = before
    projects = pd.DataFrame(report["projects"])
    return {
        "command": f"llmopt bench corpus --scale {config.scale().name}",
        "projects": len(projects),
        "missing": [row["project"] for row in report["missing"]],
        "files": int(projects.files.sum()),
        "compiled": int(projects.compiled.sum()),
        "functions": len(wanted),
        "unlabelled": int((~wanted.isin(labels.id)).sum()),
        "lost": len(set(labels.id) - set(wanted)),
        "cores": os.cpu_count(),
        "clang": frontend.available()[1],
        "llvm": llvm.version(),
        "seconds": round(seconds, 1),
        "core_seconds": round(spent, 1),
    }
