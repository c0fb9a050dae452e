import random

import pytest

from llmopt import autotune, llvm, passes, sandbox
from llmopt.config import InputError


def test_random_lists_are_valid_and_of_all_lengths():
    rng = random.Random(0)
    lists = [autotune.random_list(rng) for _ in range(500)]
    assert {len(names) for names in lists} == set(range(1, autotune.MAX_LENGTH + 1))
    assert all(passes.check(names) for names in lists)
    assert 0.1 < sum(any(n in passes.META for n in names) for names in lists) / 500 < 0.3


def test_mutations_are_valid_neighbours():
    rng = random.Random(0)
    for _ in range(500):
        names = autotune.random_list(rng)
        changed = autotune.mutate(rng, names)
        passes.check(changed)
        assert changed and abs(len(changed) - len(names)) <= 3


def test_search_beats_oz_where_a_loop_is_unrolled(sample):
    found = autotune.search(sample["crc32"], "stripped", 60)
    assert found.best < found.oz and found.passes != passes.OZ
    assert found.compilations >= 60
    with llvm.Module(sample["crc32"]) as module:
        assert llvm.apply(module, found.passes).count == found.best
        assert llvm.apply(module, passes.OZ).count == found.oz
        assert module.count() == found.unoptimised


KNOWN = (("sroa<modify-cfg>", "gvn"), ("-Oz", "dce"), ("-O1",))


def test_search_is_deterministic(sample):
    settings = {"seed": "s", "known": KNOWN, "start": 2, "patience": 30}
    one, other = (autotune.search(sample["sieve"], "minsize", 80, **settings) for _ in range(2))
    assert one == other


def test_what_won_elsewhere_is_tried_first_and_its_counts_are_kept(sample):
    found = autotune.search(sample["sieve"], "minsize", 5, known=KNOWN, start=2)
    runs = sandbox.shared().run(sample["sieve"], "minsize", KNOWN[:2])
    assert found.first == tuple(run.count for run in runs)


def test_patience_ends_a_search_that_brings_nothing(sample):
    spent = [
        autotune.search(sample["gcd"], "minsize", 400, patience=patience).compilations
        for patience in (20, None)
    ]
    assert spent[0] < 100 < spent[1]


def test_each_walk_is_told_and_the_best_never_gets_worse(sample):
    told = []
    found = autotune.search(
        sample["crc32"], "stripped", 60, on_walk=lambda spent, best: told.append((spent, best))
    )
    assert told == sorted(told, key=lambda pair: (pair[0], -pair[1]))
    assert told[-1] == (60, found.best)


def test_learned_passes_follow_what_won_and_reach_everything():
    pick, rng = autotune.learned(KNOWN), random.Random(0)
    after = [pick(rng, "sroa<modify-cfg>") for _ in range(3000)]
    assert after.count("gvn") > 1200  # two draws of five, and its share of the others
    assert len(set(after)) > 140
    assert autotune.learned([]) is autotune.uniform


def test_minimised_lists_need_each_of_their_passes(sample):
    found = autotune.search(sample["crc32"], "stripped", 60)
    assert found.passes != passes.OZ
    box = sandbox.shared()
    for at in range(len(found.passes)):
        shorter = found.passes[:at] + found.passes[at + 1 :]
        assert box.run(sample["crc32"], "stripped", [shorter])[0].count > found.best


def test_a_list_that_does_nothing_is_minimised_to_oz(sample):
    box = sandbox.shared()
    padded = ("lcssa", "-Oz", "lower-expect")
    oz, run = box.run(sample["gcd"], "stripped", [passes.OZ, padded])
    assert run.count == oz.count
    best, spent = autotune.minimise(sample["gcd"], "stripped", run, oz)
    assert best.passes == passes.OZ and spent == 1


def test_search_on_invalid_ir_says_so():
    with pytest.raises(InputError, match="-Oz fails on the function: parse"):
        autotune.search("define i32 @f( {", "stripped", 10)
