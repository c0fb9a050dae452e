"""What a model in training is said to be worth."""

from dataclasses import replace

import pytest
from test_choose import LISTS_OF, examples
from test_generate import FUNCTIONS, random_model

from llmopt import passes, tokenizer, validation
from llmopt.config import PROTOCOLS


def curves(gains):
    """The curves of a random model on functions for which `gvn` saves so many instructions."""
    tok = tokenizer.train([text for text, _ in FUNCTIONS], 500)
    known = [
        replace(e, oz=10, gains=((passes.OZ, 0), (("gvn",), gain)))
        for e, gain in zip(examples(gain=1)[::2], gains, strict=False)
    ]
    known = [replace(e, protocol=p) for e in known for p in PROTOCOLS]
    return validation.Curves(tok, known, LISTS_OF, written=0)(random_model(tok, 0))


def test_a_list_that_always_pays_is_taken_by_the_cautious():
    found = curves([4] * 20)
    for protocol in PROTOCOLS:
        assert found[f"cautious_{protocol}"] == pytest.approx(40, abs=10)  # all but the least sure
        said = 100 - found[f"oz_share_{protocol}"]
        assert found[f"improvement_{protocol}"] == pytest.approx(said * 4 / 10)


def test_a_list_that_never_pays_is_not():
    found = curves([-4] * 20)
    for protocol in PROTOCOLS:
        assert found[f"cautious_{protocol}"] > -4  # at most one that is surer than all others


def test_no_function_decides_about_itself():
    for gains in ([9, -1], [-1, 9]):
        found = curves(gains)
        assert max(found[f"cautious_{p}"] for p in PROTOCOLS) <= 0  # 9 was not to be known
