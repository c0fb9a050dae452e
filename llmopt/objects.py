"""Bytes of machine code: what the count of instructions stands for (paper, Section II-B).

LLVM's code generator turns the IR that a pass list leaves into an object for x86-64, as `clang -Oz`
would; `sizes` reads off its sections how many bytes are code and how many are constants. It aborts
the process on some IR, so it runs in one of its own (this module, run as a program), which is
started again when it dies.

Not counted: what every object has (symbols, relocations, unwinding tables), and what a linker makes
of it. Other processors have other sizes.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from llmopt import ir, metrics, passes, sandbox
from llmopt.config import InputError
from llmopt.worker import Worker

TRIPLE = "x86_64-linux-gnu"
SECONDS, MEMORY_MB = 10, 4096  # of the processor and of address space, for one function
CONSTANTS = (".rodata", ".data.rel.ro")  # tables that passes and the code generator make
KEY = ["id", "protocol", "passes"]


@dataclass(frozen=True)
class Size:
    """Bytes of an object: of machine code, and of constants beside it (jump tables, tables that a
    pass made of a switch, numbers that do not fit an instruction)."""

    code: int
    constants: int

    @property
    def total(self) -> int:
        return self.code + self.constants


class Generator(Worker):
    """A process with LLVM's code generator in it."""

    def __init__(self) -> None:
        super().__init__("llmopt.objects")

    def sizes(self, texts: Sequence[str], protocol: str) -> list[Size | None]:
        """The size of the object of each normalised IR, None where there is none: no valid IR, or
        the code generator aborts on it, or takes too long."""
        answers = [self.ask(ir.module_text(text, protocol)) for text in texts]
        return [Size(*answer) if answer else None for answer in answers]


def measure(
    text: str, protocol: str, lists: Iterable[Sequence[str]], generator: Generator
) -> list[dict]:
    """A row a list that LLVM and its code generator come to an end on: `passes count code
    constants`, instructions and bytes of what the list makes of the function `text`."""
    runs = [run for run in sandbox.shared().run(text, protocol, list(lists), text=True) if run.ok]
    made = generator.sizes([run.text for run in runs], protocol)
    return [
        {
            "passes": passes.format(run.passes),
            "count": run.count,
            "code": size.code,
            "constants": size.constants,
        }
        for run, size in zip(runs, made, strict=True)
        if size
    ]


# --- what the measurements say -----------------------------------------------------------------


def beside_oz(rows: pd.DataFrame, measured: pd.DataFrame) -> pd.DataFrame:
    """An evaluation's `rows` (`id protocol method oz passes` …) with the bytes of their lists,
    `bytes`, and of -Oz, `oz_bytes`, code and constants together. A function of which one list was
    not measured is left out under that protocol, so that all methods are about the same functions.

    Raises `InputError` where nothing is left.
    """
    total = (measured.code + measured.constants).rename("bytes")
    known = measured[KEY].assign(bytes=total)
    oz = known[known.passes == "-Oz"].drop(columns="passes").rename(columns={"bytes": "oz_bytes"})
    failed = rows.status != "ok"  # -Oz is what is shipped then
    found = rows.assign(shipped=rows.passes.mask(failed, "-Oz"))
    found = found.merge(known.rename(columns={"passes": "shipped"}), "left", validate="m:1")
    found = found.merge(oz, "left", validate="m:1").drop(columns="shipped")
    whole = found.groupby(["id", "protocol"]).bytes.transform("count")
    each = found.groupby(["id", "protocol"]).bytes.transform("size")
    found = found[(whole == each) & found.oz_bytes.notna()]
    if found.empty:
        raise InputError("no function has all its lists measured; `llmopt bench objects` does it")
    return found.astype({"bytes": int, "oz_bytes": int}).reset_index(drop=True)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """What each method saves over -Oz in instructions and in bytes, a row a protocol, method and
    `measure`: `percent` with `low` and `high`, its 95% interval over functions."""
    out = []
    for (protocol, method), own in rows.groupby(["protocol", "method"], sort=False):
        for name, oz, after in (
            ("instructions", own.oz, own["count"]),
            ("bytes", own.oz_bytes, own.bytes),
        ):
            ends = metrics.interval(oz, after, n=500)
            out.append((protocol, method, name, metrics.improvement(oz, after), *ends))
    return pd.DataFrame(out, columns=["protocol", "method", "measure", "percent", "low", "high"])


@dataclass(frozen=True)
class Agreement:
    """How far counts speak for bytes. `across`: the rank correlation of -Oz's counts and bytes over
    functions. `within`: that of the instructions and of the bytes that lists save on the same
    functions, where the list leaves another count than -Oz, with its 95% interval. Of the `fewer`
    cases with fewer instructions, `smaller` have fewer bytes, too, and `larger` more."""

    across: float
    within: float
    interval: tuple[float, float]
    fewer: int
    smaller: int
    larger: int


def agreement(rows: pd.DataFrame, seed: int = 0, draws: int = 500) -> Agreement:
    """`Agreement` of some rows of `beside_oz`. Raises `InputError` where fewer than three functions
    have another count than under -Oz."""
    saved, bytes_saved = rows.oz - rows["count"], rows.oz_bytes - rows.bytes
    moved = np.column_stack([saved, bytes_saved])[saved.to_numpy() != 0]
    if len(moved) < 3:
        raise InputError(f"{len(moved)} functions have another count than under -Oz: pass more")
    rng = np.random.default_rng(seed)
    drawn = [
        _rank_correlation(moved[rng.integers(0, len(moved), len(moved))]) for _ in range(draws)
    ]
    gained = moved[moved[:, 0] > 0]
    functions = rows.drop_duplicates(["id", "protocol"])
    return Agreement(
        across=_rank_correlation(functions[["oz", "oz_bytes"]].to_numpy()),
        within=_rank_correlation(moved),
        interval=tuple(float(end) for end in np.nanpercentile(drawn, [2.5, 97.5])),
        fewer=len(gained),
        smaller=int((gained[:, 1] > 0).sum()),
        larger=int((gained[:, 1] < 0).sum()),
    )


def _rank_correlation(pairs: np.ndarray) -> float:
    """Spearman's; NaN where one side does not vary."""
    from scipy.stats import rankdata

    ranks = np.apply_along_axis(rankdata, 0, pairs)
    if (ranks == ranks[0]).all(axis=0).any():
        return float("nan")
    return float(np.corrcoef(ranks.T)[0, 1])


# --- the worker --------------------------------------------------------------------------------


def main() -> None:
    """Serve requests until standard input ends: a module's text as a JSON string a line, answered
    by [bytes of code, bytes of constants], or null for what is no valid IR."""
    import resource

    from llvmlite import binding

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MB << 20, MEMORY_MB << 20))
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    target = binding.Target.from_triple(TRIPLE)
    machine = target.create_target_machine(opt=2, reloc="pic", codemodel="small")
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            context = binding.create_context()  # so that nothing of a module outlives it
            module = binding.parse_assembly(json.loads(line), context)
            made = binding.ObjectFileRef.from_data(machine.emit_object(module))
            code = sum(part.size() for part in made.sections() if part.is_text())
            constants = sum(
                part.size()
                for part in made.sections()
                if (part.name() or b"").startswith(tuple(map(str.encode, CONSTANTS)))
            )
            answer = [code, constants]
        except RuntimeError:  # of the parser
            answer = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
