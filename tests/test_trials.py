"""Several lists a function: steps and costs as LLVM says, the same after an interruption."""

from __future__ import annotations

import pandas as pd
import pytest

from llmopt import ir, nvp, rivals, sandbox, trials
from llmopt.config import PROTOCOLS, InputError

NAMES = ("clamp", "gcd", "power_modulo", "parse_integer", "crc32", "edit_distance")
CHEAP = trials.check("random,coreset,coreset-nvp,autophase")


@pytest.fixture(scope="module")
def functions(sample) -> pd.DataFrame:
    return pd.DataFrame([{"id": ir.function_id(sample[n]), "ir": sample[n]} for n in NAMES])


@pytest.fixture(scope="module")
def known(functions, tmp_path_factory) -> rivals.Rivals:
    return rivals.fit(functions, tmp_path_factory.mktemp("rivals"), 720)


@pytest.fixture(scope="module")
def tried(functions, known, tmp_path_factory) -> trials.Trials:
    return trials.compare(functions, CHEAP, known, None, tmp_path_factory.mktemp("trials"))


def test_every_method_tries_what_it_may(tried, functions):
    assert len(tried.spent) == len(functions) * len(PROTOCOLS) * len(CHEAP)
    most = tried.spent.groupby("method").tried.max()
    assert most.to_dict() == {name: trials.MOST[name] for name in CHEAP}
    assert (tried.spent.compiling > 0).all()
    first = tried.steps.groupby(["id", "protocol", "method"]).tried.min()
    assert len(first) == len(tried.spent)


def test_steps_are_what_llvm_says(tried, known, functions):
    texts = dict(zip(functions.id, functions.ir, strict=True))
    for method in ("coreset", "coreset-nvp"):
        own = tried.steps[(tried.steps.method == method) & (tried.steps.protocol == "minsize")]
        for row in own.itertuples():
            lists = known.coreset["minsize"]
            if method == "coreset-nvp":
                lists = known.values["minsize"].rank(texts[row.id])
            runs = sandbox.shared().run(texts[row.id], "minsize", lists[: row.tried])
            assert min(run.count for run in runs if run.ok) == row.count == runs[-1].count


def test_curves_fall_in_steps_and_backup_never_loses(tried):
    for protocol in PROTOCOLS:
        for method in CHEAP:
            table = trials.bests(tried, protocol, method)
            spent = tried.spent[tried.spent.method == method]
            oz = spent[spent.protocol == protocol].set_index("id").oz
            worked = table.ne(oz, axis=0)
            falling = table.diff(axis=1).iloc[:, 1:] <= 0
            assert (falling | ~worked.iloc[:, :-1]).all(axis=None)
    curves = trials.curves(tried, backup=True)
    assert (curves.percent >= 0).all() and (curves.compilations >= 2).all()
    plain = trials.curves(tried, backup=False)
    assert (plain.percent <= curves.percent).all()
    grows = curves.groupby(["protocol", "method"]).percent.apply(
        lambda s: s.is_monotonic_increasing
    )
    assert grows.all()


def test_a_record_holds_and_a_false_one_is_found(tried, functions, known, tmp_path):
    few = functions.head(2)
    assert trials.differences(tried, few, known, tmp_path).empty
    steps = tried.steps.copy()
    wrong = steps[(steps.id == few.id[0]) & (steps.method == "random")].index[0]
    steps.loc[wrong, "count"] -= 1
    found = trials.differences(trials.Trials(steps, tried.spent), few, known, tmp_path)
    assert len(found) == 2 and set(found.method) == {"random"}


def test_by_hand():
    spent = pd.DataFrame([("a", 10, 3), ("b", 30, 3)], columns=["id", "oz", "tried"]).assign(
        protocol="stripped", method="coreset", choosing=0.0, compiling=0.3
    )
    steps = pd.DataFrame(
        [("a", 1, 12), ("a", 3, 8), ("b", 2, 27)], columns=["id", "tried", "count"]
    ).assign(protocol="stripped", method="coreset")
    made = trials.Trials(steps, spent)
    table = trials.bests(made, "stripped", "coreset", 4)
    assert table.loc["a"].tolist() == [12, 12, 8, 8]
    assert table.loc["b"].tolist() == [30, 27, 27, 27]  # a list that fails finds nothing
    plain = trials.curves(made, backup=False)
    assert plain.percent.tolist() == pytest.approx([-5.0, 2.5, 12.5])
    kept = trials.curves(made, backup=True)
    assert kept.percent.tolist() == pytest.approx([0.0, 7.5, 12.5])
    assert kept.compilations.tolist() == [2.0, 3.0, 4.0]
    found = trials.table(made, at=(2, 100), draws=50)
    assert found.tried.tolist() == [2, 3] and found.saved.tolist() == [3, 5]
    ahead = trials.versus(made, "stripped", ("coreset", 3), ("coreset", 1))
    assert ahead["points"] == pytest.approx(12.5)


def test_an_interruption_changes_nothing(functions, known, tried, tmp_path):
    def stop(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trials.compare(functions, CHEAP, known, None, tmp_path, on_done=stop)
    again = trials.compare(functions, CHEAP, known, None, tmp_path)
    pd.testing.assert_frame_equal(again.steps, tried.steps)


def test_what_breaks_is_left_out(functions, known, tmp_path):
    broken = functions.ir[0].replace("ret i32", "ret i64")
    more = pd.DataFrame([*functions.head(1).to_dict("records"), {"id": "x", "ir": broken}])
    found = trials.compare(more, ("coreset",), known, None, tmp_path)
    assert set(found.spent.id) == {functions.id[0]}
    with pytest.raises(InputError, match="nothing to compare on"):
        trials.compare(more.tail(1), ("coreset",), known, None, tmp_path / "none")


def test_methods_are_named():
    assert trials.check("all") == tuple(trials.MOST)
    assert trials.check("nucleus, random") == ("random", "nucleus")
    with pytest.raises(InputError, match="did you mean 'coreset'"):
        trials.check("corset")


def test_rivals_are_saved_without_pickle_and_are_the_same(known, functions, tmp_path):
    rivals.save(known, tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors"}
    again = rivals.load(tmp_path)
    assert again.coreset == known.coreset and isinstance(again.values["stripped"], nvp.Values)
    for text in functions.ir[:2]:
        for protocol in PROTOCOLS:
            assert again.values[protocol].rank(text) == known.values[protocol].rank(text)
            walk = known.policies[protocol].walk(text, protocol)
            assert again.policies[protocol].walk(text, protocol) == walk
    assert len(known.coreset["stripped"]) == rivals.CORESET
    (tmp_path / "nvp-minsize.safetensors").unlink()
    with pytest.raises(InputError, match="nvp-minsize"):
        rivals.load(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        rivals.load(tmp_path / "none")
