"""The opening page, its figure and the README's picture say what the records say."""

import re

import pytest

from llmopt import baselines, claims, evaluate, opening, pipeline
from llmopt.config import PROTOCOLS, InputError

RENEW = "run: llmopt evaluate --scale reference --release"


def test_the_page_is_what_the_records_give():
    text = opening.PAGE.read_text()
    assert text == opening.page(text), RENEW


def test_the_answer_replaces_what_stood_between_the_marks():
    old = f"# T\n\n{opening.START}\nan old answer\n{opening.END}\n\nmore\n"
    made = opening.page(old)
    assert "an old answer" not in made and opening.answer() in made
    assert made.startswith("# T\n") and made.endswith("more\n")
    with pytest.raises(InputError, match="0 places"):
        opening.page("# T\n")


def test_the_figure_is_of_these_records():
    told = re.search(r"<dc:description>(.*?)</dc:description>", opening.FIGURE.read_text())
    assert told[1] == opening.words(), RENEW
    assert opening.words() in opening.README.read_text(), RENEW


def test_four_rows_and_their_numbers():
    table = opening.table()
    paper, *ours, baseline = table.index
    assert len(ours) == len(PROTOCOLS) == 2
    given = {claim.what: claim.paper for claim in claims.CLAIMS}
    assert list(table.loc[paper]) == [given[what] for what in opening.COLUMNS.values()]
    found = pipeline.record("evaluation")["protocols"]
    for protocol, row in zip(PROTOCOLS, ours, strict=True):
        assert f"`{protocol}`" in row
        methods, functions = found[protocol]["methods"], found[protocol]["functions"]
        for method, cells in (
            (evaluate.MODEL, list(table.loc[row])),
            (
                baselines.SINGLE,
                [re.search(f"`{protocol}` ([^<]*)", x)[1] for x in table.loc[baseline]],
            ),
        ):
            own = methods[method]
            assert cells[0].startswith(f"{own['improvement']:.2f}%")
            assert cells[1].startswith(f"{own['with_oz_backup']:.2f}%")
            assert cells[2] == f"{100 * own['improved'] / functions:.1f}%"
            assert cells[3] == f"{100 * own['regressed'] / functions:.1f}%"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_where_the_model_stands(protocol):
    assert opening.stands(protocol, evaluate.MODEL) == "level with"
    assert opening.stands(protocol, evaluate.AUTOTUNER) == "behind"
    assert opening.stands(protocol, evaluate.AUTOTUNER, backup=True) == "behind"
