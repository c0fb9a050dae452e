"""Evaluation: every method gets its row, failures cost what they cost in use, and no more."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from llmopt import (
    baselines,
    choose,
    evaluate,
    generate,
    ir,
    judge,
    model,
    passes,
    tables,
    tokenizer,
)
from llmopt.config import PROTOCOLS, InputError
from llmopt.labels import Budget, label
from llmopt.prompt import Answer
from llmopt.tokenizer import END, PAD

# LLVM 22.1.8 crashes on this list and `parse_integer` (tests/test_sandbox.py).
CRASHING = ("-Oz", "unify-loop-exits")  # on a switch that leaves a loop; LLVM 22.1.8
NAMES = ("clamp", "gcd", "power_modulo", "parse_integer")
RIVALS = {baselines.SINGLE: lambda protocol, texts: [("mem2reg", "simplifycfg")] * len(texts)}
METHODS = [evaluate.AUTOTUNER, baselines.SINGLE, evaluate.MODEL]


@pytest.fixture(scope="module")
def functions(sample) -> pd.DataFrame:
    return pd.DataFrame([{"id": ir.function_id(sample[n]), "ir": sample[n]} for n in NAMES])


@pytest.fixture(scope="module")
def labels(functions, tmp_path_factory) -> pd.DataFrame:
    return label(functions, tmp_path_factory.mktemp("labels"), Budget(2, 8, 8, 2))


@pytest.fixture(scope="module")
def folder(functions, tmp_path_factory):
    """A model with random weights, in the folder that a trained one is in."""
    tok = tokenizer.train([ir.rename(text)[0] for text in functions.ir], 512)
    llama = model.build("smoke", len(tok), 1, pad_token_id=tok.ids[PAD], eos_token_id=tok.ids[END])
    with torch.no_grad():
        llama.model.embed_tokens.weight.mul_(8)  # opinions of its own
    folder = tmp_path_factory.mktemp("model")
    llama.save_pretrained(folder)
    tok.save(folder)
    return folder


@pytest.fixture(scope="module")
def result(functions, labels, folder, tmp_path_factory):
    directory = tmp_path_factory.mktemp("evaluation")
    return evaluate.evaluate(functions, labels, folder, RIVALS, directory, 2, 24)


def test_every_method_has_a_row_for_every_function(result, functions):
    rows = result.rows
    assert len(rows) == len(PROTOCOLS) * len(METHODS) * len(functions)
    for (_, _), group in rows.groupby(["protocol", "method"]):
        assert sorted(group.id) == sorted(functions.id)
    assert sum(result.left_out.values()) == 0
    assert len(result.code) == len(PROTOCOLS) * 2
    assert set(result.code.id) == set(functions.id[:2])
    assert rows.groupby(["id", "protocol"]).oz.nunique().eq(1).all()


def test_rows_are_what_llvm_says(result, functions, labels):
    texts = dict(zip(functions.id, functions.ir, strict=True))
    for row in result.rows.itertuples():
        choice = judge.choice(texts[row.id], row.protocol, passes.parse(row.passes))
        assert (choice.oz, choice.count, choice.status) == (row.oz, row.count, row.status)
    tuned = result.rows[result.rows.method == evaluate.AUTOTUNER]
    known = labels.set_index(["id", "protocol"])
    for row in tuned.itertuples():
        assert row.count == known.best[row.id, row.protocol] <= row.oz
        assert row.compilations == known.compilations[row.id, row.protocol] > 0


def test_json_has_the_agreed_shape(result, functions):
    value = json.loads(json.dumps(tables.summary(result.rows, result.code, result.left_out)))
    assert list(value["protocols"]) == list(PROTOCOLS)
    for found in value["protocols"].values():
        assert found["functions"] == len(functions) and found["oz"] > 0
        assert list(found["methods"]) == METHODS
        for row in found["methods"].values():
            low, high = row["ci95"]
            assert low <= row["improvement"] <= high
            assert row["with_oz_backup"] >= max(0, row["improvement"])
            for name in ("improved", "regressed", "extra_compilations"):
                assert isinstance(row[name], int)
        assert found["methods"]["autotuner"]["regressed"] == 0
        assert found["methods"]["model"]["extra_compilations"] == 0
        code = found["codegen"]
        assert code["functions"] == 2
        assert 0 <= code["compiles"] <= 100 and 0 <= code["exact_match"] <= code["compiles"]
        assert 0 <= code["bleu"] <= 1 and {"mape_before", "mape_after"} <= set(code)


def test_written_code_that_fails_has_a_reason_and_a_class(result):
    failed = result.code[~result.code.compiles]
    assert (failed.kind != "").all() and (failed.error != "").all()
    assert int(tables.errors(result.code).to_numpy().sum()) == len(failed)


def test_a_list_that_crashes_llvm_costs_a_compilation_and_ships_oz(sample):
    text = sample["parse_integer"]
    choice = judge.choice(text, "stripped", CRASHING)
    assert choice.status == "crash"
    assert choice.count == choice.oz
    assert choice.text == judge.choice(text, "stripped", passes.OZ).text


def test_a_crash_is_one_method_s_and_one_function_s(functions, labels, folder, tmp_path):
    rivals = {baselines.SINGLE: lambda protocol, texts: [CRASHING] * len(texts)}
    rows = evaluate.evaluate(functions, labels, folder, rivals, tmp_path, 0, 24).rows
    crashed = rows[rows.status != "ok"]
    assert set(crashed.method) == {baselines.SINGLE} and set(crashed.status) == {"crash"}
    assert (crashed["count"] == crashed.oz).all() and (crashed.compilations == 1).all()
    whole = tables.table(rows).set_index(["protocol", "method"])
    row = whole.loc["stripped", baselines.SINGLE]
    assert row.extra_compilations == (crashed.protocol == "stripped").sum()


def test_answers_are_asked_for_once(functions, labels, folder, tmp_path, monkeypatch):
    """What an interrupted run had asked is kept, and the rest ends as if it had not been."""
    asked = []
    greedy = generate.greedy

    def counting(llama, tok, items, **settings):
        asked.append(len(items))
        return greedy(llama, tok, items, **settings)

    monkeypatch.setattr(generate, "greedy", counting)
    first = evaluate.answers(folder, functions.head(1), PROTOCOLS, tmp_path)
    again = evaluate.answers(folder, functions, PROTOCOLS, tmp_path)
    # By whole chunks: an answer may depend on its neighbours.
    assert asked == [2, 2 * len(functions)]
    whole = evaluate.answers(folder, functions, PROTOCOLS, tmp_path / "other")
    assert again == whole and again.items() >= first.items()
    asked.clear()
    arguments = (functions, labels, folder, RIVALS, tmp_path, 2, 24)
    result = evaluate.evaluate(*arguments)
    asked.clear()
    repeated = evaluate.evaluate(*arguments)
    assert asked == []
    pd.testing.assert_frame_equal(result.rows, repeated.rows)
    pd.testing.assert_frame_equal(result.code, repeated.code)


def test_broken_functions_are_left_out_and_counted(functions, folder, tmp_path):
    broken = functions.ir[0].replace("ret i32", "ret i64")
    more = pd.concat(
        [functions, pd.DataFrame([{"id": ir.function_id(broken), "ir": broken}])],
        ignore_index=True,
    )
    labels = label(more, tmp_path, Budget(1, 4, 4, 1))
    result = evaluate.evaluate(more, labels, folder, RIVALS, tmp_path, 0, 24)
    assert set(result.rows.id) == set(functions.id)
    assert result.left_out[evaluate.NO_LABEL] == 1


def test_a_prompt_without_room_is_left_out_and_counted(functions, folder, tmp_path):
    lines = "".join(f"%{n} = add i32 %{n - 1 if n > 2 else 0}, {n}\n" for n in range(2, 600))
    text = f"define i32 @long(i32 %0) {{\n{lines}ret i32 %599\n}}\n"
    more = pd.concat(
        [functions, pd.DataFrame([{"id": ir.function_id(text), "ir": text}])], ignore_index=True
    )
    labels = label(more, tmp_path, Budget(1, 2, 2, 1))
    result = evaluate.evaluate(more, labels, folder, RIVALS, tmp_path, len(more), 4)
    assert set(result.rows.id) == set(functions.id)
    assert result.left_out[evaluate.NO_ROOM] == 1


def test_nothing_to_evaluate_is_an_error(functions, labels, folder, tmp_path):
    arguments = (folder, RIVALS, tmp_path, 2, 24)
    with pytest.raises(InputError, match="no functions"):
        evaluate.evaluate(functions.head(0), labels, *arguments)
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate.evaluate(functions, labels.head(0), *arguments)


def test_ir_that_does_not_parse_is_refused():
    with pytest.raises(InputError, match="parse"):
        judge.choice("define i32 @f( {\n", "stripped", passes.OZ)


# --- judging written code ------------------------------------------------------------------------


def judged(sample, code: str | None, error: str | None = None) -> dict:
    choice = judge.choice(sample["gcd"], "stripped", passes.OZ)
    answer = Answer(passes.OZ, choice.unoptimised, choice.oz, code, error)
    return judge.written(sample["gcd"], "stripped", choice, answer)


def test_perfect_code_is_exact(sample):
    best = judge.choice(sample["gcd"], "stripped", passes.OZ)
    row = judged(sample, best.text)
    assert row["compiles"] and row["exact"] and row["kind"] == row["error"] == ""
    assert row["predicted_after"] == row["count"]


def test_other_code_compiles_without_being_exact(sample):
    row = judged(sample, sample["gcd"])
    assert row["compiles"] and not row["exact"]
    assert row["written"] == row["unoptimised"] and 0 < row["bleu"] < 1


def test_slips_have_names(sample):
    text = sample["clamp"]
    choice = judge.choice(text, "stripped", passes.OZ)
    better = judge.choice(text, "stripped", ("mem2reg",)).text

    def slip(code: str) -> str:
        answer = Answer(passes.OZ, 1, 1, code)
        return judge.written(text, "stripped", choice, answer, better)["slip"]

    assert slip(choice.text) == "" and slip("nonsense") == ""
    assert slip(text) == judge.COPY
    assert slip(better) == judge.OTHER_LIST
    crc = judge.choice(sample["crc32"], "stripped", passes.OZ)
    wrong = re.sub(r"(= xor i32 %\w+, )(-?\d+)", r"\g<1>12345", crc.text, count=1)
    assert wrong != crc.text
    row = judge.written(sample["crc32"], "stripped", crc, Answer(passes.OZ, 1, 1, wrong))
    assert row["slip"] == judge.CONSTANT
    other = crc.text.replace("xor", "or")
    assert not judge.written(sample["crc32"], "stripped", crc, Answer(None, 1, 1, other))["slip"]


def test_the_best_of_several_lists_is_taken_and_never_above_oz(sample):
    text = sample["gcd"]
    worse, better = ("lower-switch",), ("-Oz", "simplifycfg")
    only = judge.best(text, "stripped", [worse, CRASHING])
    assert only.passes == passes.OZ and only.count == only.oz < only.unoptimised
    tried = [judge.choice(text, "stripped", names).count for names in (worse, better)]
    found = judge.best(text, "stripped", [worse, better])
    assert found.count == min(only.oz, *tried)
    assert found.text == judge.choice(text, "stripped", found.passes).text
    with pytest.raises(InputError, match="parse"):
        judge.best("define i32 @f( {\n", "stripped", [worse])


# --- what written code means ---------------------------------------------------------------------


def test_written_code_that_compiles_is_run(sample, tmp_path):
    text = sample["clamp"]
    choice = judge.choice(text, "stripped", passes.OZ)
    wrong = choice.text.replace("icmp slt", "icmp sgt")
    assert wrong != choice.text
    made = []
    for key, code in (("right", choice.text), ("wrong", wrong), ("none", "nonsense")):
        answer = Answer(passes.OZ, choice.unoptimised, choice.oz, code)
        row = judge.written(text, "stripped", choice, answer)
        made.append({"id": key, "protocol": "stripped"} | row)
    rows = pd.DataFrame(made)
    found = evaluate.meanings(rows, tmp_path).set_index("id")
    assert list(found.index) == ["right", "wrong"] and list(found.exact) == [True, False]
    assert found.meaning.to_dict() == {"right": "equal", "wrong": "differs"}
    assert (found.control == "equal").all() and (found.inputs > 0).all()
    example = json.loads(found.example["wrong"])
    assert example["original"] != example["other"]
    again = evaluate.meanings(rows, tmp_path).set_index("id")  # from the journal
    pd.testing.assert_frame_equal(found, again)
    assert evaluate.meanings(rows[rows.id == "none"], tmp_path / "none").empty

    table = tables.meaning(found.reset_index()).set_index("code")
    assert table.equal.to_list() == [1, 0, 2] and table.differs.to_list() == [1, 1, 0]
    assert table.equal_share.to_list() == [50.0, 0.0, 100.0]
    with pytest.raises(InputError, match="nothing to run"):
        tables.meaning(found.head(0))


@pytest.mark.parametrize(
    ("edit", "kind"),
    [
        (lambda text: "", judge.NO_CODE),
        (lambda text: None, judge.NO_CODE),
        (lambda text: text.replace("ret i32 ", "ret i32 %nowhere ;"), "undefined value"),
        (lambda text: text.replace("ret i32", "ret ptr"), "type error"),
        (lambda text: text.replace("define i32", "define define"), "syntax error"),
        (lambda text: "\n".join(text.splitlines()[:4])[:-3], judge.CUT_OFF),
    ],
)
def test_broken_code_is_classified(sample, edit, kind):
    row = judged(sample, edit(sample["gcd"]), error="the code is cut off")
    assert not row["compiles"] and not row["exact"]
    assert row["kind"] == kind and row["error"]


def test_a_declaration_alone_is_no_code_for_the_function(sample):
    row = judged(sample, "declare i32 @gcd(i32, i32)\n")
    assert not row["compiles"] and row["error"] == "no function"


# --- tables --------------------------------------------------------------------------------------


def rows(*counts: tuple[str, int, int, str]) -> pd.DataFrame:
    """Hand-made rows: (method, count after -Oz, the method's count, its list)."""
    return pd.DataFrame(
        [
            {"id": str(i), "protocol": "stripped", "method": method, "oz": oz, "count": count,
             "passes": listed, "compilations": 7 if method == "autotuner" else 0, "status": "ok"}
            for i, (method, oz, count, listed) in enumerate(counts)
        ]
    )  # fmt: skip


def test_table_by_hand():
    found = tables.table(
        rows(
            ("autotuner", 10, 8, "gvn"),
            ("autotuner", 30, 30, "-Oz"),
            ("model", 10, 7, "sroa"),
            ("model", 30, 35, "gvn,dce"),
            ("model", 40, 40, "-Oz"),
        )
    ).set_index("method")
    tuned, said = found.loc["autotuner"], found.loc["model"]
    assert tuned.percent == pytest.approx(5.0) and tuned.extra_compilations == 14
    assert tuned.with_oz_backup == tuned.percent
    assert tuned.with_oz_backup_compilations == 14, "the search has compiled -Oz already"
    assert said.percent == pytest.approx(100 * (3 - 5) / 80)
    assert (said.improved, said.regressed, said.saved, said.lost) == (1, 1, 3, 5)
    assert said.with_oz_backup == pytest.approx(100 * 3 / 80)
    assert said.says_other_than_oz == said.with_oz_backup_compilations == 2
    assert said.interval[0] <= said.percent <= said.interval[1]


def test_table_by_suite():
    more = rows(("m", 10, 5, "gvn"), ("m", 10, 10, "-Oz")).assign(suite=["a", "b"])
    found = tables.table(more, by=("suite", "method")).set_index("suite")
    assert found.percent.to_dict() == {"a": 50.0, "b": 0.0}


def test_readable_shows_every_figure_and_a_dash_for_none():
    shown = tables.readable(tables.table(rows(("m", 1000, 990, "gvn"))))
    assert shown["over \u2011Oz"][0] == "1.00%" and shown["95% interval"][0] == "1.00 to 1.00%"
    paper = tables.readable(pd.DataFrame(tables.PAPER)).set_index("method")
    assert paper.loc["7B model", "over \u2011Oz"] == "3.01%"
    assert paper.loc["AutoPhase", "improved"] == "–"
    assert paper.loc["autotuner", "extra compilations"] == "2,522,253,069"


def test_empty_tables_are_errors():
    with pytest.raises(InputError):
        tables.table(rows(("m", 1, 1, "gvn")).head(0))
    with pytest.raises(InputError):
        tables.errors(pd.DataFrame())
    assert tables.code_summary(pd.DataFrame()) == {"functions": 0}


def test_code_summary_by_hand():
    code = pd.DataFrame(
        {
            "predicted_before": [10, None],
            "predicted_after": [6, np.nan],
            "unoptimised": [8, 9],
            "count": [5, 4],
            "compiles": [True, False],
            "exact": [True, False],
            "kind": ["", judge.NO_CODE],
            "protocol": ["stripped"] * 2,
            "code": ["ret i32 %1 and some more", ""],
            "reference": ["ret i32 %1 and some more", "ret void"],
            "input": ["ret i32 %1 and some more", "ret void"],
        }
    )
    found = tables.code_summary(code)
    assert (found["functions"], found["compiles"], found["exact_match"]) == (2, 50.0, 50.0)
    assert found["mape_before"] == pytest.approx(25.0)
    assert found["mape_after"] == pytest.approx(20.0)
    assert found["counts_given"] == 1
    assert found["bleu_of_copying_the_input"] == pytest.approx(1.0)
    assert found["bleu"] < 1
    assert tables.errors(code).to_dict() == {"stripped": {judge.NO_CODE: 1}}


def test_the_model_chooses_by_the_rule_in_its_folder(functions, labels, folder, tmp_path):
    ruled = tmp_path / "ruled"
    shutil.copytree(folder, ruled)
    lists = ["-Oz", "mem2reg,simplifycfg", "gvn"]
    for least, allowed in ((1.0, {"-Oz"}), (-1.0, {"mem2reg,simplifycfg", "gvn"})):
        rule = {p: {"lists": lists, "worth": [[least, 0.1, 0.1]] * 3} for p in PROTOCOLS}
        (ruled / "rule.json").write_text(json.dumps(rule))
        made = evaluate.evaluate(functions, labels, ruled, RIVALS, tmp_path / f"{least}", 2, 24)
        chosen = made.rows[made.rows.method == evaluate.MODEL]
        assert set(chosen.passes) <= allowed
        assert len(made.code) == len(PROTOCOLS) * 2  # code is about the likeliest list, whatever
        llama, tok = model.load(ruled)  # the rule takes
        known = choose.load(ruled).lists
        texts = dict(zip(functions.id, functions.ir, strict=True))
        for row in made.code.itertuples():
            [scores] = choose.score(llama, tok, [(texts[row.id], row.protocol)], known)
            likeliest = known[row.protocol][int(scores.argmax())]
            assert row.count == judge.choice(texts[row.id], row.protocol, likeliest).count


def test_parity_is_where_it_stays_above_oz():
    log = pd.DataFrame(
        {
            "tokens": [1, 2, 3, 4, 5],
            "cautious_stripped": [None, 0.2, -0.1, 0.3, 0.1],
            "cautious_minsize": [None, 0.0, 0.1, 0.2, 0.0],
        }
    )
    assert tables.parity(log, "stripped") == 4
    assert tables.parity(log, "minsize") is None
    assert tables.parity(log.head(1), "stripped") is None
    assert tables.parity(log.head(2), "stripped") == 2
