"""Choosing among lists: scores are the model's own, and the rule saves what it can."""

import json

import numpy as np
import pytest
import torch
from test_generate import FUNCTIONS, random_model

from llmopt import choose, dataset, generate, model, passes, prompt, tokenizer, train
from llmopt.config import PROTOCOLS, InputError
from llmopt.prompt import Example
from llmopt.train import TrainConfig

LISTS = (passes.OZ, ("gvn",), ("sroa<modify-cfg>", "gvn"))

LISTS_OF = dict.fromkeys(PROTOCOLS, [("gvn",)])


@pytest.fixture(scope="module")
def tok():
    return tokenizer.train([text for text, _ in FUNCTIONS], 500)


def test_scores_are_the_models(tok):
    llama = random_model(tok, 0)
    many = choose.score(llama, tok, FUNCTIONS, dict.fromkeys(PROTOCOLS, LISTS), 200)
    assert len(many) == len(FUNCTIONS)
    for (text, protocol), found in zip(FUNCTIONS, many, strict=True):
        asked, _ = prompt.encode_prompt(text, protocol, tok)
        for names, value in zip(LISTS, found, strict=True):
            ids = torch.tensor([[*asked, *prompt.encode_list(names, tok)]])
            with torch.no_grad():
                likely = llama(ids).logits.double().log_softmax(-1)[0, :-1]
            each = likely.gather(1, ids[0, 1:, None])[len(asked) :]
            assert value == pytest.approx(each.sum().item(), abs=0.5)  # bfloat16 where it is fast


def test_a_prompt_without_room_has_no_score(tok):
    long = "define i32 @f(i32 %1) {\n" + "%2 = add i32 %1, 1\n" * 900 + "ret i32 %2\n}\n"
    seen = []
    asked = [(long, "minsize"), FUNCTIONS[0]]
    lists = dict.fromkeys(PROTOCOLS, LISTS)
    found = choose.score(random_model(tok, 0), tok, asked, lists, on_done=seen.append)
    assert found[0] is None and len(found[1]) == 3 and seen == [2]
    assert choose.score(random_model(tok, 0), tok, [], lists) == []


def examples(gain):
    """Additions are best left to gvn; how much it saves is asked."""
    made = []
    for i in range(80):
        word = "add" if i % 2 else "mul"
        code = f"define i32 @f(i32 %1) {{\n%2 = {word} i32 %1, {i}\nret i32 %2\n}}\n"
        gains = ((passes.OZ, 0), (("gvn",), gain if i % 2 else -1))
        best = ("gvn",) if i % 2 and gain > 0 else passes.OZ
        for p in PROTOCOLS:
            made.append(Example(f"{i:064}", p, code, best, 2, 1, code, 2, gains))
    return made


def test_a_trained_model_chooses_what_saves_most(tmp_path):
    known = examples(gain=3)
    tok = tokenizer.train([e.ir for e in known], 500)
    config = TrainConfig(preset="smoke", steps=120, tokens_per_batch=1000, prompt_weight=0.0)
    data = dataset.prepare(known[:120], tok, 2048, tmp_path / "train", tasks=("list",))
    folder = train.train(data, None, tok, config, tmp_path, progress=False)
    llama, _ = model.load(folder)
    rule = choose.calibrate(llama, tok, known[120:], LISTS_OF)
    assert rule.lists["minsize"] == (passes.OZ, ("gvn",))
    for protocol in PROTOCOLS:
        own = [e for e in known[120:] if e.protocol == protocol]
        scores = choose.score(llama, tok, [(e.ir, protocol) for e in own], rule.lists)
        chosen = [rule.choose(protocol, values) for values in scores]
        right = np.mean([names == e.passes for names, e in zip(chosen, own, strict=True)])
        assert right > 0.9
    losing = choose.calibrate(llama, tok, examples(gain=-2)[120:], LISTS_OF)
    for protocol in PROTOCOLS:  # where no list saves anything, none is taken
        scores = choose.score(llama, tok, [(known[0].ir, protocol)], rule.lists)
        assert losing.choose(protocol, scores[0]) == passes.OZ
    (tmp_path / "rule.json").write_text(json.dumps(rule.to_json()))
    loaded = choose.load(tmp_path)
    assert loaded.lists == rule.lists
    for protocol in PROTOCOLS:
        assert loaded.worth[protocol] == pytest.approx(rule.worth[protocol], abs=1e-4)


def test_what_saves_most_in_expectation_is_taken_not_what_is_likeliest():
    lists, rng = (passes.OZ, ("gvn",), ("early-cse",)), np.random.default_rng(0)
    known = []
    for i in range(300):
        # Right one time in three and then worth twenty instructions; the other loses one.
        hopeful, right = i % 2, rng.random() < 1 / 3
        gains = (0, (20 if right else -1) if hopeful else -5, -1)
        scores = np.log([0.6, 0.3, 0.1] if hopeful else [0.8, 0.05, 0.15])
        pairs = tuple(zip(lists, gains, strict=True))
        known.append((Example(f"{i:064}", "stripped", "", passes.OZ, 9, 9, "", 9, pairs), scores))
    worth = choose.fit_worth(known, lists)
    rule = choose.Rule({"stripped": lists}, {"stripped": worth})
    assert rule.choose("stripped", np.log([0.6, 0.3, 0.1])) == ("gvn",)
    assert rule.choose("stripped", np.log([0.8, 0.05, 0.15])) == passes.OZ
    assert rule.choose("stripped", None) == passes.OZ
    expected = choose.probabilities(np.log([0.6, 0.3, 0.1])) @ worth
    assert 1 < expected[1] < 6  # 6 is the mean; shrunk by as much as there are examples
    few = choose.fit_worth(known[:3], lists)
    assert (few == np.eye(3)).all()


def test_a_folder_without_a_usable_rule_is_refused_by_name(tmp_path):
    bad = (["gvn"], [[1.0]]), (["-Oz", "gvn"], [[1.0]]), (["-Oz", "nosuchpass"], [[1.0] * 2] * 2)
    whole = [json.dumps({p: {"lists": own, "worth": w} for p in PROTOCOLS}) for own, w in bad]
    for text in ("", "{}", *whole):
        (tmp_path / "rule.json").write_text(text)
        with pytest.raises(InputError, match="rule.json: no usable rule"):
            choose.load(tmp_path)


def test_generation_writes_out_the_list_that_was_chosen(tok):
    llama = random_model(tok, 3)
    made = generate.greedy(llama, tok, FUNCTIONS[:2], max_new_tokens=20, lists=list(LISTS[1:]))
    assert [one.answer.passes for one in made] == list(LISTS[1:])
