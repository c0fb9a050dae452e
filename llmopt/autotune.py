"""The autotuner: search for the pass list that leaves fewest instructions of one function.

As in the paper (Section II-B) the best list found is minimised. Where the paper samples uniformly
for 780 seconds, a compilation buys more here, in five ways:

- a search step is a *walk*: the count is taken after every pass, so every prefix is a sample;
- a transposition table (`sandbox.explore`): what was run on the same code before is looked up;
- lists that won elsewhere are tried first (`labels` says where they come from);
- once a list beats -Oz, half of the walks vary the best; four of five passes are drawn from what
  followed what in lists that won elsewhere;
- patience: a search ends when so many compilations brought nothing.

A compilation is one list run over one function, a walk included; a walk that was looked up from
beginning to end is none.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmopt import llvm, passes, sandbox
from llmopt.config import InputError

MAX_LENGTH = 9  # of a random list, as in the paper's best lists
_META_SHARE = 0.2  # of the random lists that hold one of the -O pipelines
_ROUND = 16  # walks a request to the sandbox
_SINGLE = tuple(name for name in passes.SPACE if name not in passes.META)


@dataclass(frozen=True)
class Found:
    """A search's result: counts in instructions, the best list and what it took to find it.

    `first` are the counts that the lists tried first gave (None where LLVM failed on one); `poison`
    are the lists on which LLVM crashed, hung or made invalid IR.
    """

    unoptimised: int
    oz: int
    best: int
    passes: tuple[str, ...]
    compilations: int
    first: tuple[int | None, ...] = ()
    poison: tuple[llvm.Run, ...] = ()


Pick = Callable[[random.Random, str | None], str]  # the pass that follows another, or starts


def uniform(rng: random.Random, previous: str | None) -> str:
    """Any pass but a meta flag, as the paper draws them."""
    return rng.choice(_SINGLE)


def learned(lists: Sequence[tuple[str, ...]]) -> Pick:
    """Passes as they occur in `lists`: two draws of five by what follows the previous pass there,
    two by how often a pass is there at all, and one uniform, so that nothing is out of reach."""
    usage: Counter[str] = Counter()
    following: dict[str | None, Counter[str]] = {}
    for names in lists:
        for previous, name in zip((None, *names), names, strict=False):
            if name not in passes.META:
                usage[name] += 1
                following.setdefault(previous, Counter())[name] += 1
    if not usage:
        return uniform
    common = list(usage), list(usage.values())
    after = {previous: (list(c), list(c.values())) for previous, c in following.items()}

    def pick(rng: random.Random, previous: str | None) -> str:
        kind = rng.randrange(5)
        if kind == 0:
            return uniform(rng, previous)
        names, weights = after.get(previous, common) if kind < 3 else common
        return rng.choices(names, weights)[0]

    return pick


def random_list(
    rng: random.Random, longest: int = MAX_LENGTH, pick: Pick = uniform
) -> tuple[str, ...]:
    """1 to `longest` passes, a meta flag at most once (paper, Section II-B)."""
    names: list[str] = []
    for _ in range(rng.randint(1, longest)):
        names.append(pick(rng, names[-1] if names else None))
    if rng.random() < _META_SHARE:
        names[rng.randrange(len(names))] = rng.choice(passes.META)
    return tuple(names)


def mutate(rng: random.Random, names: tuple[str, ...], pick: Pick = uniform) -> tuple[str, ...]:
    """A neighbour of a list: passes appended, inserted, replaced or moved to the end anew."""
    out = list(names)
    kind = rng.randrange(4)
    if kind in (1, 2) and out:
        at = rng.randrange(len(out) + (kind == 1))
        out[at : at + (kind == 2)] = [pick(rng, out[at - 1] if at else None)]
        return tuple(out)
    if kind == 3 and len(out) > 1:
        del out[rng.randrange(len(out))]
    for _ in range(rng.randint(1, 3) if kind == 0 else 1):
        out.append(pick(rng, out[-1] if out else None))
    return tuple(out)


def _better(run: llvm.Run, best: llvm.Run) -> bool:
    return run.ok and (run.count, len(run.passes)) < (best.count, len(best.passes))


def search(
    ir: str,
    protocol: str,
    compilations: int,
    seed: str | int = 0,
    known: Sequence[tuple[str, ...]] = (),
    start: int = 0,
    patience: int | None = None,
    on_walk: Callable[[int, int], None] | None = None,
) -> Found:
    """Search for the list that leaves fewest instructions, with a budget of `compilations`;
    minimising the result takes a few more, which are counted.

    `known` are lists that won elsewhere: the first `start` of them are tried first, and all teach
    what follows what. `patience`: end after so many compilations without a gain. `on_walk` is told
    the compilations spent and the best count after each walk.

    Deterministic in its arguments. The result was confirmed by running the minimised list as one
    pipeline. Raises `InputError` where even -Oz fails on the function.
    """
    box = sandbox.shared()
    rng = random.Random(f"{seed}:{protocol}")
    unoptimised, oz = box.run(ir, protocol, [(), passes.OZ])
    for run in (oz, unoptimised):
        if not run.ok:
            raise InputError(f"-Oz fails on the function: {run.status}: {run.message}")
    best, spent, first, poison = oz, 1, [], []
    pick, queue = learned(known), list(known[:start])
    gained_at, proposed = len(queue), 0
    # A walk that is looked up costs nothing; a tiny function has few that do not.
    while spent < compilations and proposed < 4 * compilations:
        if patience is not None and spent - gained_at >= patience:
            break
        found = best.passes != passes.OZ  # around -Oz itself there is little to find
        lists = []
        for _ in range(min(_ROUND, compilations - spent)):
            if queue:
                lists.append(queue.pop(0))
            elif found and rng.random() < 0.5:
                lists.append(mutate(rng, best.passes, pick))
            else:
                lists.append(random_list(rng, pick=pick))
        walks = box.explore(ir, protocol, lists, fresh=proposed == 0)
        proposed += len(lists)
        for names, walk in zip(lists, walks, strict=True):
            spent += walk.new > 0
            if len(first) < min(start, len(known)):
                first.append(None if walk.failure else walk.counts[-1])
            if walk.new and walk.failure and walk.failure.status != "refused":
                poison.append(walk.failure)
            for length, count in enumerate(walk.counts, start=1):
                if (count, length) < (best.count, len(best.passes)):
                    gained_at = max(gained_at, spent) if count < best.count else gained_at
                    best = llvm.Run(names[:length], count=count)
            if on_walk:
                on_walk(spent, best.count)
    best, tried = minimise(ir, protocol, best, oz)
    return Found(
        unoptimised.count,
        oz.count,
        best.count,
        best.passes,
        spent + tried,
        tuple(first),
        tuple(poison),
    )


def minimise(ir: str, protocol: str, best: llvm.Run, oz: llvm.Run) -> tuple[llvm.Run, int]:
    """Drop every pass that the list can do without (paper, Section II-B). Also confirms that the
    list does as one pipeline what it did as a walk; -Oz where it does not.

    Returns the run of the minimal list and the compilations spent.
    """
    if best.passes == oz.passes:
        return oz, 0
    box = sandbox.shared()
    whole = box.run(ir, protocol, [best.passes])[0]
    spent = 1
    if not _better(whole, oz) and whole.passes != oz.passes:
        return oz, spent
    best, at = whole, 0
    while at < len(best.passes) > 1:  # an answer has at least one pass
        shorter = best.passes[:at] + best.passes[at + 1 :]
        run = box.run(ir, protocol, [shorter])[0]
        spent += 1
        if _better(run, best):
            best = run
        else:
            at += 1
    return best, spent


def blame(ir: str, protocol: str, failed: llvm.Run) -> llvm.Run:
    """The shortest part of a list on which LLVM still fails in the same way (dropping one pass at a
    time); the run as it was given where the failure does not come again."""
    box = sandbox.shared()

    def fails(names: tuple[str, ...]) -> llvm.Run | None:
        run = box.run(ir, protocol, [names])[0]
        return run if run.status == failed.status else None

    found = fails(failed.passes)
    if found is None:
        return failed
    at = len(found.passes) - 1
    while at >= 0:
        shorter = found.passes[:at] + found.passes[at + 1 :]
        found = (shorter and fails(shorter)) or found
        at -= 1
    return found
