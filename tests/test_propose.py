"""What a model proposes: its one choice first, each list once, the same after an interruption."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

from llmopt import choose, evaluate, ir, model, passes, propose, sampling, tokenizer
from llmopt.config import PROTOCOLS, InputError
from llmopt.tokenizer import END, PAD

LISTS = (("gvn",), ("mem2reg", "simplifycfg"), ("-Os",))


@pytest.fixture(scope="module")
def functions(sample) -> pd.DataFrame:
    names = ("clamp", "gcd", "power_modulo")
    return pd.DataFrame([{"id": ir.function_id(sample[n]), "ir": sample[n]} for n in names])


@pytest.fixture(scope="module")
def folder(functions, tmp_path_factory):
    """A model with random weights and a rule that says -Oz under one protocol."""
    tok = tokenizer.train([ir.rename(text)[0] for text in functions.ir], 512)
    llama = model.build("smoke", len(tok), 1, pad_token_id=tok.ids[PAD], eos_token_id=tok.ids[END])
    with torch.no_grad():
        llama.model.embed_tokens.weight.mul_(8)  # opinions of its own
    folder = tmp_path_factory.mktemp("model")
    llama.save_pretrained(folder)
    tok.save(folder)
    rule = choose.rule(dict.fromkeys(PROTOCOLS, LISTS))
    for protocol, promise in zip(PROTOCOLS, (-1, 2), strict=True):
        rule.worth[protocol][:, 0] = promise  # what another list has to promise: never -Oz, always
    (folder / "rule.json").write_text(json.dumps(rule.to_json()))
    return folder


@pytest.fixture(scope="module")
def asked(functions):
    return [(text, protocol) for text in functions.ir for protocol in PROTOCOLS]


def test_the_first_is_what_the_model_says_in_one_shot(folder, asked):
    said = [answer.passes for answer in evaluate.asker(folder)(asked)]
    for samples in (1, 3, 12):
        lists = propose.proposer(folder, "model", samples)(asked)
        assert [own[0] for own in lists] == said
        for own in lists:
            assert len(own) == len(set(own)) == samples
    assert {names == passes.OZ for names in said} == {True, False}


def test_known_lists_come_before_new_ones(folder, asked):
    known = {passes.OZ, *LISTS}
    for own in propose.proposer(folder, "model", 9)(asked):
        assert set(own[: len(known)]) == known and not known & set(own[len(known) :])


def test_sampling_alone_is_sampling(folder, asked):
    llama, tok = model.load(folder)
    drawn = sampling.priority(llama, tok, asked, 4)
    lists = propose.proposer(folder, "priority", 4)(asked)
    assert lists == [[one.passes for one in own] for own in drawn]
    for own in propose.proposer(folder, "nucleus", 8)(asked):
        assert 1 <= len(own) == len(set(own)) <= 8


def test_an_interruption_changes_nothing(folder, functions, tmp_path):
    whole = propose.proposals(folder, "priority", functions, PROTOCOLS, tmp_path / "a", 4)
    part = functions.head(1)
    for rows in (part, functions):
        again = propose.proposals(folder, "priority", rows, PROTOCOLS, tmp_path / "b", 4)
    assert {key: own for key, (own, _) in again.items()} == {
        key: own for key, (own, _) in whole.items()
    }
    assert all(seconds > 0 for _, seconds in whole.values())


def test_no_samples_are_refused(folder):
    with pytest.raises(InputError, match="at least one sample"):
        propose.proposer(folder, "priority", 0)
