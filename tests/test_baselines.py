"""The single best list: the one that saves most when it is kept only where it beats -Oz."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from llmopt import baselines, ir, passes, sandbox
from llmopt.config import PROTOCOLS, InputError
from llmopt.prompt import Example

LISTS = ("mem2reg,simplifycfg", "-O1", "dce", "newgvn,mem2reg,instcombine<no-verify-fixpoint>")


@pytest.fixture(scope="module")
def functions(sample) -> pd.DataFrame:
    rows = [{"id": ir.function_id(text), "ir": text} for text in sample.values()]
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def labels(functions) -> pd.DataFrame:
    """Labels as a search would leave them: lists in turn, each said to save one instruction."""
    box = sandbox.shared()
    oz = [box.run(text, "stripped", [passes.OZ])[0].count for text in functions.ir]
    listed = [LISTS[i % len(LISTS)] for i in range(len(functions))]
    return pd.DataFrame(
        {"id": functions.id, "protocol": "stripped", "oz": oz, "best": [n - 1 for n in oz],
         "passes": listed}
    )  # fmt: skip


def gain(functions: pd.DataFrame, names: tuple[str, ...]) -> int:
    saved = 0
    for text in functions.ir:
        oz, run = sandbox.shared().run(text, "stripped", [passes.OZ, names])
        saved += max(0, oz.count - run.count) if run.ok else 0
    return saved


def test_it_is_the_best_of_the_labels_by_trial(functions, labels):
    best = baselines.single_list(functions, labels, "stripped")
    gains = {passes.parse(text): gain(functions, passes.parse(text)) for text in LISTS}
    assert gains[best] == max(gains.values()) > 0


def test_many_workers_choose_as_one_does(functions, labels):
    with ThreadPoolExecutor(2) as pool:
        assert baselines.single_list(functions, labels, "stripped", pool) == baselines.single_list(
            functions, labels, "stripped"
        )


def test_oz_itself_is_no_candidate(functions, labels):
    only = labels.assign(passes="-Oz")
    assert baselines.single_list(functions, only, "stripped") == ("-Os",)


def test_without_labels_it_says_what_to_do(functions, labels):
    with pytest.raises(InputError, match="llmopt autotune"):
        baselines.single_list(functions, labels, "minsize")
    with pytest.raises(InputError, match="no labels"):
        baselines.single_list(functions.head(0), labels, "stripped")


LOOP = """define i32 @f(i32 %0) {
br label %2
2:
%3 = phi i32 [ 0, %1 ], [ %4, %2 ]
%4 = add i32 %3, 1
%5 = icmp eq i32 %4, 1000
br i1 %5, label %6, label %2
6:
%7 = tail call i32 @llvm.smax.i32(i32 %4, i32 %0)
%8 = call i32 @g(i32 %7)
ret i32 %8
}
declare i32 @llvm.smax.i32(i32, i32)
declare i32 @g(i32)
"""


def test_features_are_counts():
    found = baselines.count_features(LOOP)
    expected = {
        "instructions": 8,
        "blocks": 2,
        "loops": 1,
        "op add": 1,
        "op br": 2,
        "op call": 2,
        "icmp digits 4": 1,
        "call llvm.smax": 1,
        "call other": 1,
        "parameters": 1,
    }
    assert {name: found[name] for name in expected} == expected  # fmt: skip
    assert baselines.count_features("") == {}


def examples(n: int, start: int = 0) -> list[Example]:
    """Every list pays where something is multiplied, the second most; elsewhere both cost."""
    made = []
    for i in range(start, start + n):
        word = "mul" if i % 3 == 0 else "add"
        code = "".join(f"%{k + 2} = {word} i32 %{k + 1}, {i}\n" for k in range(i % 5 + 1))
        text = f"define i32 @f(i32 %1) {{\n{code}ret i32 %1\n}}\n"
        good = word == "mul"
        gains = ((passes.OZ, 0), (("gvn",), 2 if good else -4), (("dce",), 6 if good else -2))
        made += [Example(f"{i}", p, text, passes.OZ, 3, 2, text, 2, gains) for p in PROTOCOLS]
    return made


def test_a_choice_by_counting_takes_what_pays():
    lists = dict.fromkeys(PROTOCOLS, [passes.OZ, ("gvn",), ("dce",)])
    chooser = baselines.Features(lists).fit(examples(300), examples(60, start=300))
    for protocol in PROTOCOLS:
        unseen = [e for e in examples(60, start=400) if e.protocol == protocol]
        right = [("dce",) if " mul " in e.ir else passes.OZ for e in unseen]
        assert chooser.choose(protocol, [e.ir for e in unseen]) == right
        assert 0 < chooser.margin[protocol] <= 6.5
        assert chooser.choose(protocol, []) == []


def test_baselines_are_read_back_from_a_model_s_folder(tmp_path):
    lists = {protocol: [("gvn",), ("dce",)] for protocol in PROTOCOLS}
    features = baselines.Features(lists).fit(examples(300), examples(60, start=300))
    single = dict.fromkeys(PROTOCOLS, ("mem2reg", "simplifycfg"))
    baselines.save(tmp_path, single, features)
    read = baselines.load(tmp_path)
    texts = [e.ir for e in examples(60, start=400) if e.protocol == "minsize"]
    assert read[baselines.SINGLE]("minsize", texts[:2]) == [("mem2reg", "simplifycfg")] * 2
    assert read[baselines.FEATURES]("minsize", texts) == features.choose("minsize", texts)


@pytest.mark.parametrize("text", ["", "{}", '{"single-list": {"stripped": "-Oz"}}', "[1]"])
def test_a_folder_without_usable_baselines_is_refused_by_name(tmp_path, text):
    with pytest.raises(InputError, match="baselines.json"):
        baselines.load(tmp_path)
    (tmp_path / "baselines.json").write_text(text)
    with pytest.raises(InputError, match="baselines.json: no usable baselines"):
        baselines.load(tmp_path)


def test_only_arrays_and_trees_are_read(tmp_path):
    """A file of another type is refused, whatever it would do when loaded."""
    from skops import io

    lists = {protocol: [] for protocol in PROTOCOLS}
    features = baselines.Features(lists).fit(examples(9), [])
    baselines.save(tmp_path, dict.fromkeys(PROTOCOLS, ("gvn",)), features)
    path = tmp_path / "features.skops"
    io.dump({"lists": subprocess.Popen}, path)
    with pytest.raises(InputError, match=r"features\.skops: no usable baselines"):
        baselines.load(tmp_path)
    path.write_bytes(b"not an archive")
    with pytest.raises(InputError, match=r"features\.skops: no usable baselines"):
        baselines.load(tmp_path)


def test_where_nothing_pays_oz_is_taken():
    losing = [
        Example(e.id, e.protocol, e.ir, passes.OZ, 3, 2, e.ir, 2, ((passes.OZ, 0), (("gvn",), -1)))
        for e in examples(100)
    ]
    lists = dict.fromkeys(PROTOCOLS, [("gvn",)])
    chooser = baselines.Features(lists).fit(losing, losing)
    assert set(chooser.choose("minsize", [e.ir for e in losing])) == {passes.OZ}
    with pytest.raises(InputError, match="without a coreset"):
        baselines.Features(lists).fit([], [])
