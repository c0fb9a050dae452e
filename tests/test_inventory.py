"""Stock is taken of a small report and a handful of labels whose sums are known by hand."""

import pandas as pd
import pytest

from llmopt import display, inventory, labels, pipeline
from llmopt.config import ROOT, InputError

NONE = {"exact_within": 0, "exact_across": 0, "structural_within": 0, "structural_across": 0}


def project(name: str, suite: str, split: str, kept: int, **more: object) -> dict:
    entry = {"project": name, "suite": suite, "split": split, "kept": kept, "over_cap": 0}
    entry |= {"files": 1, "compiled": 1, "failed": {}, "functions": kept, "too_long": 0}
    return entry | {"duplicates": NONE, "refused_by_llvm": {}} | more


REPORT = {
    "functions": {"train": 16, "valid": 0, "test": 5},
    "projects": [
        project(
            *("islpy", "algorithms", "train", 10),
            files=6,
            compiled=3,
            failed={"'gmp.h' file not found": ["a.c"], "unknown type name 'T'": ["b.c", "c.c"]},
            functions=24,
            too_long=2,
            over_cap=7,
            duplicates=NONE | {"exact_within": 1, "structural_across": 4},
        ),
        project("csmith", "synthetic", "train", 6, refused_by_llvm={"bad": 2}),
        project(
            *("viennarna", "bioinformatics", "test", 5),
            files=2,
            failed={"'zlib.h' file not found": ["z.c"]},
        ),
    ],
}


def released() -> pd.DataFrame:
    about = {
        "a1": ("islpy", "algorithms", "train", 10, 400),
        "b2": ("csmith", "synthetic", "train", 30, 600),
        "c3": ("viennarna", "bioinformatics", "test", 20, 500),
        "d4": ("csmith-test", "synthetic", "test", 8, 100),
    }
    rows = [
        (key, protocol, count, count // 2 - (protocol == "minsize"), project, suite, split, length)
        for key, (project, suite, split, count, length) in about.items()
        for protocol in ("stripped", "minsize")
    ]
    names = ["id", "protocol", "unoptimised", "oz", "project", "suite", "split", "characters"]
    return pd.DataFrame(rows, columns=names)


def test_training_data_stands_beside_the_papers():
    table = inventory.training(released()).set_index("set")
    assert table.loc["paper: all", "functions"] == 1_000_000
    handwritten, synthetic = table.loc["ours: handwritten"], table.loc["ours: synthetic"]
    assert (handwritten.functions, handwritten.instructions, handwritten.megabytes) == (1, 10, 4e-4)
    assert (synthetic.functions, synthetic.instructions, synthetic.megabytes) == (1, 30, 6e-4)
    assert table.loc["ours: all", "functions"] == 2
    assert table.tokens.notna().tolist() == [True] * 3 + [False] * 3


def test_test_data_has_a_row_a_suite_and_both_protocols():
    table = inventory.testing(released())
    assert table.set.tolist()[-3:] == ["ours: bioinformatics", "ours: synthetic", "ours: all"]
    assert table.iloc[-1, 1:].tolist() == [2, 2, 28, 14, 12]
    assert table.iloc[:6].functions.sum() == table.iloc[6].functions == 100_000


def test_the_papers_parts_add_up_to_what_it_gives_for_all():
    handwritten, synthetic, both = inventory.PAPER_TRAINING
    sums = [a + b for a, b in zip(handwritten[1:], synthetic[1:], strict=True)]
    assert sums[0] == both[1]
    assert sums[2] == pytest.approx(both[3], rel=0.01)
    assert sums[3] == pytest.approx(both[4], rel=0.01)


def test_doubtful_figures_are_marked_and_ours_never_are():
    table = inventory.testing(released())
    table.loc[table.index[-1], "functions"] = 310  # as many as the paper's POJ-104
    html = inventory.mark(display.table(table, {"functions": inventory.number}), table).to_html()
    assert html.count("(?)") == 6
    assert ">310\N{NO-BREAK SPACE}(?)<" in html and ">310<" in html
    assert [inventory.number(x) for x in (1234, 1234.0, 0.25)] == ["1,234", "1,234", "0.2"]


def test_every_function_of_a_project_is_accounted_for():
    table = inventory.projects(REPORT)
    left = table.functions - table.too_long - table.duplicates - table.over_cap
    assert left.tolist() == table.kept.tolist() == [10, 6, 5]
    assert table.failed.tolist() == [3, 0, 1]
    assert table.reason.tolist() == ["unknown type name 'T'", "", "'zlib.h' file not found"]
    totals = inventory.totals(table)
    assert totals.split.tolist() == ["train", "test", "all"]
    assert totals.iloc[-1][["projects", "files", "kept", "refused"]].tolist() == [3, 9, 21, 2]
    assert inventory.capped(table, 12).tolist() == [12, 6, 5]


def test_failures_are_grouped_by_kind():
    table = inventory.failures(REPORT)
    assert table.files.tolist() == [2, 2]
    header = table.set_index("kind").loc["a header is not there"]
    assert (header.projects, header.message) == (2, "'gmp.h' file not found")
    intrinsic = "'__builtin_ia32_x' needs target feature ssse3"
    other = {"projects": [project("p", "s", "train", 0, failed={intrinsic: ["x.c"]})]}
    assert "processor" in inventory.failures(other).kind[0]


def test_duplicates_suites_and_collections_are_sums_over_projects():
    assert inventory.duplicates(REPORT).to_numpy().tolist() == [[1, 0], [0, 4]]
    suites = inventory.suites(REPORT)
    assert suites.index[0] == "algorithms"
    assert suites.loc["bioinformatics"].tolist() == [0, 0, 5]
    found = inventory.collections(REPORT).set_index("theme")
    assert found.loc["dynamic programming: ViennaRNA"].tolist() == [1, 5, 5]
    assert found.kept.sum() == 5


def test_collections_are_in_the_recorded_corpus():
    there = {entry["project"] for entry in pipeline.record("corpus")["projects"]}
    assert {name for names in inventory.COLLECTIONS.values() for name in names} <= there


def test_the_recorded_corpus_keeps_what_it_does_not_drop():
    table = inventory.projects(pipeline.record("corpus"))
    lost = table.too_long + table.duplicates + table.over_cap
    assert (table.functions - lost == table.kept).all()
    assert (table.files - table.failed == table.compiled).all()


def test_functions_without_labels_are_told_apart():
    functions = pd.DataFrame(
        [
            ("a1", "islpy", "train"),
            ("ff", "islpy", "train"),  # the corpus of the labels has it from elsewhere
            ("c3", "viennarna", "test"),
            ("b0", "viennarna", "test"),
            ("ee", "viennarna", "test"),  # after the last that was labelled
            ("c0", "viennarna", "test"),  # -Oz fails
        ],
        columns=["id", "project", "split"],
    )
    record = {"scale": {"test_functions": 3}, "failures": {"stripped:c0": "LLVM crashed"}}
    known = released()
    known = known[known.project != "csmith-test"]
    table = inventory.joined(functions, known, record, REPORT)
    columns = ["functions", "labelled", "beyond", "failed", "missing"]
    assert table[columns].to_numpy().tolist() == [[2, 1, 0, 0, 1], [4, 1, 1, 1, 1], [6, 2, 1, 1, 2]]
    assert table.project.tolist() == ["islpy", "viennarna", "all"]
    nothing = inventory.joined(functions, known[:0], record, REPORT)
    assert nothing.iloc[-1][["labelled", "beyond"]].tolist() == [0, 3]


def test_the_released_labels_are_of_projects_in_the_report():
    report = inventory.projects(pipeline.record("corpus")).set_index("project")
    about = pd.read_parquet(labels.RELEASED.with_name("functions.parquet"))
    many = about.project.value_counts()
    assert (many <= report.kept[many.index]).all()


def test_definition_finds_a_function_in_its_file():
    source = (ROOT / "data" / "sample" / "algorithms.c").read_text()
    gcd = inventory.definition(source, "gcd")
    assert gcd.startswith("int gcd(int ") and gcd.endswith("}")
    assert gcd.count("{") == gcd.count("}") and gcd in source
    text = "int f(int);\nint g(void) { return f(1); }\nint f(int x) { if (x) { x = 2; } return x; }"
    assert inventory.definition(text, "f") == text.splitlines()[2]
    with pytest.raises(InputError, match="no definition of h"):
        inventory.definition(text, "h")


def test_empty_stock_is_bad_input():
    with pytest.raises(InputError, match="training functions"):
        inventory.training(released()[:0])
    with pytest.raises(InputError, match="test functions"):
        inventory.testing(released()[:0])
    with pytest.raises(InputError, match="projects"):
        inventory.projects({"projects": []})
