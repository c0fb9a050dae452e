"""Several lists a function: unique, valid, in order, and the same however they are batched."""

import heapq

import pytest
import torch
from test_generate import FUNCTIONS, random_model

from llmopt import generate, passes, prompt, sampling, tokenizer
from llmopt.config import InputError
from llmopt.grammar import MAX_PASSES, Grammar
from llmopt.tokenizer import PASSES


@pytest.fixture(scope="module")
def tok():
    return tokenizer.train([text for text, _ in FUNCTIONS], 500)


@pytest.fixture(scope="module")
def llama(tok):
    return random_model(tok, 1)


def by_hand(llama, tok, text, protocol, samples, longest):
    """Priority sampling from its definition, a plain model call a token, everything queued."""
    grammar = Grammar(tok, longest)
    asked = [*prompt.encode_prompt(text, protocol, tok)[0], tok.ids[PASSES]]
    queue, found = [(0.0, ())], []
    while queue and len(found) < samples:
        cost, prefix = heapq.heappop(queue)
        while prefix[-1:] != (grammar.before,):
            with torch.inference_mode():
                logits = llama(torch.tensor([[*asked, *prefix]])).logits[0, -1]
            allowed = grammar.allowed(grammar.walk(prefix))
            likely = logits[allowed].double().log_softmax(-1).tolist()
            best = max(range(len(allowed)), key=likely.__getitem__)
            for i, value in enumerate(likely):
                if i != best:
                    heapq.heappush(queue, (cost - value, (*prefix, allowed[i])))
            cost, prefix = cost - likely[best], (*prefix, allowed[best])
        found.append((tuple(tok.pass_ids[n] for n in prefix[:-1]), -cost))
    return found


@pytest.mark.parametrize(("width", "batch_size"), [(1, 1), (8, 10)])
def test_priority_sampling_is_its_definition(llama, tok, width, batch_size):
    how = {"width": width, "batch_size": batch_size, "max_passes": 4}
    made = sampling.priority(llama, tok, FUNCTIONS[:4], 6, **how)
    for (text, protocol), own in zip(FUNCTIONS[:4], made, strict=True):
        expected = by_hand(llama, tok, text, protocol, 6, 4)
        assert [one.passes for one in own] == [names for names, _ in expected]
        values = [one.log_probability for one in own]
        assert values == pytest.approx([value for _, value in expected], abs=1e-3)


def test_samples_are_unique_valid_and_begin_with_the_greedy_list(llama, tok):
    made = sampling.priority(llama, tok, FUNCTIONS, 12)
    greedy = generate.greedy(llama, tok, FUNCTIONS, passes_only=True)
    for own, first in zip(made, greedy, strict=True):
        assert len({one.passes for one in own}) == 12
        assert own[0].passes == first.answer.passes
        for one in own:
            assert len(passes.check(one.passes)) <= MAX_PASSES and one.log_probability < 0


def test_few_samples_are_the_first_of_many(llama, tok):
    many = sampling.priority(llama, tok, FUNCTIONS, 9)
    for few, own in zip(sampling.priority(llama, tok, FUNCTIONS, 3), many, strict=True):
        assert [one.passes for one in few] == [one.passes for one in own[:3]]


def test_a_grammar_runs_out_of_lists(llama, tok):
    for own in sampling.priority(llama, tok, FUNCTIONS[:2], 10_000, max_passes=1):
        assert len(own) == len(passes.SPACE)  # all of them, once each, the likeliest first
        values = [one.log_probability for one in own]
        assert values == sorted(values, reverse=True)


def test_nucleus_sampling_draws_what_is_likely(llama, tok):
    made = sampling.nucleus(llama, tok, FUNCTIONS, 20, seed=1)
    assert made == sampling.nucleus(llama, tok, FUNCTIONS, 20, seed=1)
    assert made != sampling.nucleus(llama, tok, FUNCTIONS, 20, seed=2)
    for own in made:
        assert len(own) == 20 and all(passes.check(one.passes) for one in own)
    cold = sampling.nucleus(llama, tok, FUNCTIONS, 3, temperature=1e-3)
    greedy = generate.greedy(llama, tok, FUNCTIONS, passes_only=True)
    for own, first in zip(cold, greedy, strict=True):
        assert {one.passes for one in own} == {first.answer.passes}


def test_what_does_not_fit_has_no_samples_and_bad_settings_are_refused(llama, tok):
    long = "define i32 @f(i32 %1) {\n" + "%2 = add i32 %1, 1\n" * 900 + "ret i32 %2\n}\n"
    seen = []
    made = sampling.priority(llama, tok, [(long, "minsize"), FUNCTIONS[0]], 2, on_done=seen.append)
    assert made[0] == [] and len(made[1]) == 2 and seen == [2]
    assert sampling.priority(llama, tok, [], 2) == []
    for settings in (
        {"samples": 0},
        {"samples": 1, "share": 0.0},
        {"samples": 1, "temperature": 0},
    ):
        with pytest.raises(InputError, match="at least one sample"):
            sampling.nucleus(llama, tok, FUNCTIONS, **settings)
    with pytest.raises(InputError, match="at least one sample"):
        sampling.priority(llama, tok, FUNCTIONS, 0)
