"""The claims table says what the records say, and leaves no claim out."""

import re

from llmopt import claims, pipeline
from llmopt.config import PROTOCOLS, ROOT


def test_the_page_is_what_the_records_give():
    assert claims.PAGE.read_text() == claims.page(), "run: llmopt evaluate --release"


def test_every_claim_has_a_value_and_a_page():
    table = claims.table()
    assert len(table) == len(claims.CLAIMS) and not table.isna().any().any()
    for protocol in PROTOCOLS:
        assert table[protocol].str.contains(r"\d|not for good").all()
    for page in set(table.page):
        assert (ROOT / f"{claims.TITLES[page]}.ipynb").exists()


def test_gains_are_the_record_s():
    row = claims.table().set_index("claim").loc["… with -Oz backup"]
    for protocol in PROTOCOLS:
        found = pipeline.record("evaluation")["protocols"][protocol]["methods"]["model"]
        value, low, high = map(float, re.findall(r"-?\d+\.\d+", row[protocol]))
        assert value == round(found["with_oz_backup"], 2)
        assert [low, high] == [round(end, 2) for end in found["with_oz_backup_ci95"]]
