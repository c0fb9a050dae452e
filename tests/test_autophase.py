"""AutoPhase: its counts are LLVM's, its game obeys Gymnasium, and a policy outlives its trainer."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from llmopt import autophase, passes, sandbox
from llmopt.autophase import NAMES, Settings
from llmopt.config import PROTOCOLS, InputError

LOOP = """define i32 @f(i32 %0) {
br label %2
2:
%3 = phi i32 [ 0, %1 ], [ %5, %2 ]
%4 = phi i64 [ -1, %1 ], [ %6, %2 ]
%5 = add nsw i32 %3, 1
%6 = mul i64 %4, %4
%7 = icmp ult i32 %5, 1000
br i1 %7, label %2, label %8
8:
%9 = tail call i32 @llvm.smax.i32(i32 %5, i32 0)
%10 = call i64 (ptr, ...) @"printf %1"(ptr null, i64 1)
call void @g(ptr getelementptr inbounds nuw (i8, ptr @t, i64 8), i1 true)
ret i32 %9
}
declare i32 @llvm.smax.i32(i32, i32)
declare i64 @"printf %1"(ptr, ...)
declare void @g(ptr, i1)
"""
LOOP_COUNTS = {
    "TotalInsts": 11, "TotalBlocks": 3, "TotalFuncs": 4, "BlockLow": 3,
    "onePred": 1, "twoPred": 1, "twoEach": 1, "oneSuccessor": 1, "twoSuccessor": 1,
    "NumEdges": 3, "CriticalCount": 1, "BranchCount": 2, "NumBrInst": 2, "UncondBranches": 1,
    "NumPHIInst": 2, "ArgsPhi": 4, "BeginPhi": 1, "BB03Phi": 1, "BBNoPhi": 2, "BBNumArgsLo": 1,
    "NumAddInst": 1, "NumMulInst": 1, "NumICmpInst": 1, "NumRetInst": 1,
    "NumCallInst": 3, "TotalMemInst": 3, "returnInt": 2, "binaryConstArg": 1,
    # phi 0, add 1, icmp 1000, smax 0; phi -1, printf 1; and `true` is a one of one bit
    "const32Bit": 4, "const64Bit": 2, "numConstZeroes": 2, "numConstOnes": 3,
}  # fmt: skip
SWITCH = """define void @f(i32 %0, ptr %1) {
%3 = alloca [4 x i32], align 16
%4 = alloca i8, i64 %5, align 16
switch i32 %0, label %9 [ i32 0, label %7 i32 1, label %7 i32 -1, label %9 ]
7:
store <2 x i32> <i32 1, i32 0>, ptr %1, align 8
%8 = fadd <2 x float> %6, splat (float 1.000000e+00)
invoke void @g(i32 1) to label %9 unwind label %10
9:
ret void
10:
%11 = landingpad { ptr, i32 } cleanup
resume { ptr, i32 } %11
}
"""
SWITCH_COUNTS = {
    "TotalInsts": 9, "TotalBlocks": 4, "TotalFuncs": 1, "BlockLow": 4, "BBNoPhi": 4,
    # two ways to 7 and to 9 from the switch, 9 and 10 from the invoke
    "NumEdges": 6, "CriticalCount": 5, "twoPred": 1, "twoEach": 1, "morePreds": 1, "onePred": 1,
    "twoSuccessor": 1, "NumAllocaInst": 2, "testUnary": 2, "NumStoreInst": 1, "TotalMemInst": 4,
    "binaryConstArg": 1, "NumRetInst": 1,
    # an alloca's own 1, three cases, the invoke's 1; none in vectors, types and alignments
    "const32Bit": 5, "numConstZeroes": 1, "numConstOnes": 3,
}  # fmt: skip
QUOTED = """%"a, label %b" = type { i32 }
define i64 @f(i64 %"x, i32 1") {
%y = sub i64 0, %"x, i32 1"
br i1 false, label %"to 1:", label %z
"to 1:":
%"q = phi" = getelementptr %"a, label %b", ptr null, i64 %y, i32 0
br label %z
z:
ret i64 %y
}
"""
QUOTED_COUNTS = {
    "TotalInsts": 5, "TotalBlocks": 3, "TotalFuncs": 1, "BlockLow": 3, "BBNoPhi": 3,
    "NumEdges": 3, "CriticalCount": 1, "onePred": 1, "onePredOneSuc": 1, "twoPred": 1,
    "oneSuccessor": 1, "twoSuccessor": 1, "BranchCount": 2, "NumBrInst": 2, "UncondBranches": 1,
    "NumSubInst": 1, "binaryConstArg": 1, "NumGetElementPtrInst": 1, "TotalMemInst": 1,
    "NumRetInst": 1, "const32Bit": 1, "const64Bit": 1, "numConstZeroes": 3,
}  # fmt: skip


@pytest.mark.parametrize(
    "text, expected",
    [(LOOP, LOOP_COUNTS), (SWITCH, SWITCH_COUNTS), (QUOTED, QUOTED_COUNTS), ("", {})],
)
def test_features_by_hand(text, expected):
    found = dict(zip(NAMES, autophase.features(text).tolist(), strict=True))
    assert {name: n for name, n in found.items() if n} == expected


def test_there_are_56():
    assert len(NAMES) == len(set(NAMES)) == 56
    many = "".join(f"%{i} = phi i1 [ true, %0 ], [ %1, %1 ]\n" for i in range(2, 6))
    block = "br label %1\n1:\n" + many + "store i8 0, ptr null\n" * 15 + "br label %1\n"
    found = dict(zip(NAMES, autophase.features(f"define void @f() {{\n{block}}}\n"), strict=True))
    assert (found["BBHiPhi"], found["BBNumArgsHi"], found["BlockMid"]) == (1, 1, 1)


def by_llvm(text: str) -> Counter[str]:
    """What needs operands and edges, from LLVM's own walk instead of the text."""
    import llvmlite.binding as llvm

    found: Counter[str] = Counter()
    module = llvm.parse_assembly(text, llvm.create_context())
    for function in module.functions:
        blocks = [list(block.instructions) for block in function.blocks]
        names = [str(block) for block in function.blocks]
        found["TotalFuncs"] += 1
        found["TotalInsts"] += sum(map(len, blocks))
        kinds = llvm.ValueKind
        after = [
            [names.index(str(o)) for o in block[-1].operands if o.value_kind == kinds.basic_block]
            for block in blocks
        ]
        before = Counter(target for targets in after for target in targets)
        found["twoPred"] += sum(number == 2 for number in before.values())
        for targets in after:
            found["NumEdges"] += len(targets)
            found["CriticalCount"] += len(targets) > 1 and sum(before[t] > 1 for t in targets)
        for instruction in (i for block in blocks for i in block):
            operands = list(instruction.operands)
            constants = [str(o).split() for o in operands if o.value_kind == kinds.constant_int]
            if instruction.opcode == "switch":  # LLVM 22 holds the cases elsewhere
                constants += [
                    c.split() for c in re.findall(r"(i\d+ -?\d+), label", str(instruction))
                ]
            for width, value in constants:
                found["const32Bit"] += width == "i32"
                found["const64Bit"] += width == "i64"
                found["numConstZeroes"] += value in ("0", "false")
                found["numConstOnes"] += value in ("1", "true")
            if instruction.opcode in autophase._BINARY:
                found["binaryConstArg"] += any(o.is_constant for o in operands)
    return found


def test_features_are_what_llvm_sees(sample):
    lists = [(), ("-O2",), ("-Oz",), ("sroa<modify-cfg>", "loop-vectorize", "slp-vectorizer")]
    for source in sample.values():
        for run in sandbox.shared().run(source, "stripped", lists, text=True):
            found = dict(zip(NAMES, autophase.features(run.text).tolist(), strict=True))
            expected = by_llvm(run.text)
            assert {name: found[name] for name in expected} == expected


# --- the game ------------------------------------------------------------------------------------

STORES = """define i32 @f(i32 %0) {
%2 = alloca i32, align 4
store i32 %0, ptr %2, align 4
%3 = load i32, ptr %2, align 4
%4 = add i32 %3, 0
ret i32 %4
}
"""
DEAD = """define i32 @f(i32 %0, i32 %1) {
%3 = mul i32 %0, %1
%4 = mul i32 %3, %1
ret i32 %1
}
"""
FUNCTIONS = [STORES, DEAD]
ACTIONS = ("early-cse", "mem2reg", "reg2mem", "instcombine<no-verify-fixpoint>", "dce")
SMALL = Settings(ACTIONS, length=4, timesteps=640, episodes=16, learning_rate=3e-3)


@pytest.fixture(scope="module")
def policy() -> autophase.Policy:
    return autophase.train(FUNCTIONS, "stripped", SMALL, seed=1)


def left(text: str, names: tuple[str, ...]) -> int:
    return sandbox.shared().walk(text, "stripped", [names])[0][-1].count


def test_actions_are_passes_that_occur():
    lists = [("dce", "-Oz"), ("gvn", "dce"), ("always-inline",)]
    assert autophase.actions(lists) == ("always-inline", "dce", "gvn")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_environment_is_one_of_gymnasium(protocol):
    from gymnasium.utils.env_checker import check_env

    check_env(autophase.environment(FUNCTIONS, protocol, SMALL), skip_render_check=True)


def test_an_episode_pays_for_instructions_and_ends():
    env = autophase.environment([STORES], "stripped", replace(SMALL, length=3))
    seen, _ = env.reset(seed=0)
    assert seen[NAMES.index("TotalInsts")] == 1 and seen[NAMES.index("NumLoadInst")] == 0.2
    assert not seen[len(NAMES) :].any()
    steps = [env.step(ACTIONS.index(name)) for name in ("mem2reg", "mem2reg", "early-cse")]
    assert [reward for _, reward, *_ in steps] == pytest.approx([3 / 5, 0, 1 / 5])
    assert [over for _, _, over, *_ in steps] == [False, False, True]
    assert steps[1][0][len(NAMES) :] == pytest.approx([0, 2 / 3, 0, 0, 0])


def test_a_pass_on_which_llvm_fails_is_not_taken(monkeypatch):
    episode = autophase.Episode(STORES, "stripped", ACTIONS, 3)
    asked = sandbox.Sandbox.run

    def run(self, ir, protocol, lists, text=False):
        runs = asked(self, ir, protocol, lists, text)
        return [replace(r, status="crash", count=None) if "dce" in r.passes else r for r in runs]

    monkeypatch.setattr(sandbox.Sandbox, "run", run)
    assert [episode.step(ACTIONS.index(name)) for name in ("dce", "mem2reg")] == [0, 3 / 5]
    assert episode.passes == ("mem2reg",) and episode.count == 2
    assert episode.taken.sum() == 2


def test_what_llvm_does_not_take_is_refused():
    with pytest.raises(InputError, match="no function to begin with: parse"):
        autophase.Episode("define void @f() {\n", "stripped", ACTIONS, 3)
    for functions, chosen in (([], ACTIONS), (FUNCTIONS, ())):
        with pytest.raises(InputError, match="AutoPhase needs functions"):
            autophase.train(functions, "stripped", replace(SMALL, actions=chosen))


# --- the policy ----------------------------------------------------------------------------------


def test_it_learns_to_save_instructions(policy):
    for text, best in ((STORES, 1), (DEAD, 1)):
        names = policy.walk(text, "stripped")
        assert len(names) == SMALL.length and left(text, names) == best


def test_the_list_is_counted_as_the_episode_was(sample):
    rng = np.random.default_rng(0)
    chosen = tuple(n for n in passes.SPACE if n.startswith(("sroa", "gvn", "simplifycfg", "licm")))
    for text in sample.values():
        episode = autophase.Episode(text, "stripped", chosen, 8)
        while not episode.over:
            episode.step(rng.integers(len(chosen)))
        assert left(text, episode.passes) == episode.count


def test_the_same_seed_gives_the_same_policy(policy):
    short = replace(SMALL, timesteps=64)
    steps: list[int] = []
    first, again, other = (
        autophase.train(FUNCTIONS, "stripped", short, seed, steps.append) for seed in (1, 1, 2)
    )
    assert sum(steps) == len(steps) == 3 * 64
    for one, two, three in zip(first.layers, again.layers, other.layers, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
        assert not np.array_equal(one[0], three[0])


def test_many_threads_walk_as_one_does(policy):
    with ThreadPoolExecutor(2) as pool:
        walks = list(pool.map(lambda text: policy.walk(text, "stripped"), FUNCTIONS * 2))
    assert walks == [policy.walk(text, "stripped") for text in FUNCTIONS] * 2


def test_a_policy_is_read_back_as_weights_and_names(policy, tmp_path):
    path = tmp_path / "autophase.safetensors"
    policy.save(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    written = path.read_bytes()
    assert written[8:9] == b"{", "a length and a JSON header, then numbers: no pickle"
    policy.save(path)
    assert zlib.crc32(path.read_bytes()) == zlib.crc32(written)
    read = autophase.load(path)
    assert (read.actions, read.length) == (policy.actions, policy.length)
    seen = np.random.default_rng(0).random(len(NAMES) + len(ACTIONS), dtype=np.float32)
    assert np.array_equal(read.scores(seen), policy.scores(seen))


def test_what_is_no_policy_is_refused_by_name(policy, tmp_path):
    path = tmp_path / "autophase.safetensors"
    with pytest.raises(InputError, match=r"autophase\.safetensors: no usable policy"):
        autophase.load(path)
    policy.save(path)
    whole = path.read_bytes()
    damaged = (
        b"",
        whole[: len(whole) // 2],
        b"\x80\x04N.",
        whole.replace(b"mem2reg", b"mem2gre"),  # no pass
        whole.replace(b"policy", b"police"),
    )
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"autophase\.safetensors: no usable") as refused:
            autophase.load(path)
        assert "\n" not in str(refused.value)
    replace(policy, actions=ACTIONS[:2]).save(path)
    with pytest.raises(InputError, match="no usable"):
        autophase.load(path)
