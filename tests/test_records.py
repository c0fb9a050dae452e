"""Records: joined with what is known of the functions, and checked against a new run."""

from __future__ import annotations

import pandas as pd
import pytest

from llmopt import evaluate, pipeline, records
from llmopt.config import PROTOCOLS, InputError


def test_what_is_recorded_is_whole():
    rows = records.read("evaluation")
    assert rows.project.notna().all() and rows.suite.notna().all()
    counts = rows.groupby(["id", "protocol"]).method.nunique()
    assert counts.nunique() == 1 and len(counts) == len(PROTOCOLS) * rows.id.nunique()
    code = records.read("code")
    assert set(code.id) <= set(rows.id) and not {"code", "input", "reference"} & set(code)


def test_a_missing_record_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "RESULTS", tmp_path)
    with pytest.raises(InputError, match="no record of the released model"):
        records.read("evaluation")


@pytest.fixture(scope="module")
def test_functions() -> pd.DataFrame:
    return pipeline.test_functions()


def test_the_record_holds_and_a_false_one_is_found(test_functions):
    rows = records.read("evaluation")
    check = records.spot_check(rows, test_functions, pipeline.RELEASED, size=4)
    assert check.asked == 4 * len(PROTOCOLS) and check.recounted > check.asked
    assert check.differ.empty
    assert check.same >= check.asked - 1  # a near tie may fall otherwise on another processor
    false = rows.assign(count=rows["count"] - (rows.method == evaluate.MODEL))
    wrong = records.spot_check(false, test_functions, pipeline.RELEASED, size=4).differ
    assert set(wrong.method) == {evaluate.MODEL}
    excused = rows.assign(passes="gvn-sink", count=rows["count"] + 1)
    found = records.spot_check(excused, test_functions, pipeline.RELEASED, size=2)
    assert found.differ.empty and found.unsteady == found.recounted
    with pytest.raises(InputError, match="none of these"):
        records.spot_check(rows, test_functions.head(0), pipeline.RELEASED)


def test_answers_are_written_as_recorded(test_functions):
    code = records.read("code")
    known = test_functions.set_index("id").ir
    rows = code[code.id.isin(known.index)].sort_values("tokens").head(3)
    again = records.write_again(rows, known, pipeline.RELEASED)
    assert (again.exact == rows.exact).sum() >= len(rows) - 1
    assert again.reference.str.startswith(("define", "@", "declare", "%")).all()
