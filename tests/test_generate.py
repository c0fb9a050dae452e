"""Generation: an untrained model, whatever its weights, writes valid lists only."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor, LogitsProcessorList

from llmopt import generate, model, passes, prompt, tokenizer
from llmopt.config import InputError
from llmopt.grammar import MAX_PASSES, Grammar, State
from llmopt.tokenizer import AFTER, BEFORE, CODE, END, PAD

FUNCTIONS = [
    (f"define i32 @f{n}(i32 %1) {{\n" + f"%{n} = add i32 %1, {n}\n" * n + f"ret i32 %{n}\n}}\n", p)
    for n in (2, 3, 5, 9, 30)
    for p in ("stripped", "minsize")
]


@pytest.fixture(scope="module")
def tok():
    return tokenizer.train([text for text, _ in FUNCTIONS], 500)


def random_model(tok, seed):
    llama = model.build(
        "smoke", len(tok), seed, pad_token_id=tok.ids[PAD], eos_token_id=tok.ids[END]
    )
    with torch.no_grad():  # far from uniform: each model has strong opinions of its own
        llama.model.embed_tokens.weight.mul_(8)
    return llama.eval()


@pytest.mark.parametrize("seed", range(4))
def test_random_models_write_valid_lists_only(tok, seed):
    done = []
    made = generate.greedy(
        random_model(tok, seed), tok, FUNCTIONS, passes_only=True, batch_size=3, on_done=done.append
    )
    assert done[-1] == len(made) == len(FUNCTIONS)
    assert all(1 <= later - earlier <= 3 for earlier, later in pairwise([0, *done]))
    for one in made:
        assert one.answer.error is None and one.answer.before is None
        assert 1 <= len(passes.check(one.answer.passes)) <= MAX_PASSES
        assert one.log_probability < 0


@pytest.mark.parametrize("seed", range(2))
def test_whole_answers_have_their_form(tok, seed):
    for one in generate.greedy(random_model(tok, seed), tok, FUNCTIONS, max_new_tokens=60):
        assert passes.check(one.answer.passes) and one.tokens <= 60
        assert isinstance(one.answer.before, int) and isinstance(one.answer.after, int)
        assert one.answer.error in (None, "the code is cut off")


@given(st.lists(st.integers(0, 10**6), min_size=40, max_size=40), st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_every_walk_through_the_grammar_is_readable(tok, choices, longest):
    grammar = Grammar(tok, longest)
    written, state = [], State()
    for choice in choices:
        allowed = grammar.allowed(state)
        written.append(allowed[choice % len(allowed)])
        state = grammar.step(state, written[-1])
        if written[-1] == tok.ids[END]:
            break
    while tok.ids[CODE] not in written:  # the shortest way out
        options = grammar.allowed(state)
        out = [tok.ids[m] for m in (CODE, AFTER, BEFORE) if tok.ids[m] in options]
        written.append(out[0] if out else options[0])
        state = grammar.step(state, written[-1])
    assert state == grammar.walk(written)
    answer = prompt.parse_answer(tokenizer.PASSES + tok.decode(written), {})
    assert passes.check(answer.passes) and len(answer.passes) <= longest
    assert answer.before is not None and answer.after is not None


def test_batches_do_not_change_the_lists(tok):
    llama = random_model(tok, 1)
    alone = generate.greedy(llama, tok, FUNCTIONS, passes_only=True, batch_size=1)
    together = generate.greedy(llama, tok, FUNCTIONS, passes_only=True, batch_size=10)
    for one, other in zip(alone, together, strict=True):
        assert one.answer == other.answer
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-3)


def test_the_list_is_the_same_with_and_without_the_rest(tok):
    llama = random_model(tok, 2)
    lists = generate.greedy(llama, tok, FUNCTIONS, passes_only=True)
    whole = generate.greedy(llama, tok, FUNCTIONS, max_new_tokens=40)
    for one, other in zip(lists, whole, strict=True):
        assert one.answer.passes == other.answer.passes
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-6)


def test_a_given_list_is_kept_and_the_rest_follows_from_it(tok):
    llama = random_model(tok, 2)
    whole = generate.greedy(llama, tok, FUNCTIONS, max_new_tokens=60)
    lists = [one.answer.passes for one in whole]
    again = generate.greedy(llama, tok, FUNCTIONS, max_new_tokens=40, lists=lists)
    for one, other in zip(whole, again, strict=True):
        assert one.text.startswith(other.text.removesuffix("<|end|>")[:30])
        assert one.answer.before == other.answer.before
    other = generate.greedy(llama, tok, FUNCTIONS, max_new_tokens=40, lists=[("dce", "-Oz")] * 10)
    assert {one.answer.passes for one in other} == {("dce", "-Oz")}


class Constrained(LogitsProcessor):
    """The grammar for `transformers`' own generation."""

    def __init__(self, grammar, start):
        self.grammar, self.start = grammar, start

    def __call__(self, input_ids, scores):
        states = [self.grammar.walk(ids[self.start :]) for ids in input_ids.tolist()]
        return scores.masked_fill(~self.grammar.mask(states), -torch.inf)


@pytest.mark.parametrize("seed", range(2))
def test_the_tokens_are_those_of_transformers(tok, seed):
    llama = random_model(tok, seed)
    together = generate.greedy(llama, tok, FUNCTIONS, max_new_tokens=50)
    for (text, protocol), one in zip(FUNCTIONS, together, strict=True):
        ids = torch.tensor(
            [[*prompt.encode_prompt(text, protocol, tok)[0], tok.ids[tokenizer.PASSES]]]
        )
        output = llama.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=50,
            do_sample=False,
            logits_processor=LogitsProcessorList([Constrained(Grammar(tok), ids.shape[1])]),
        )
        assert tokenizer.PASSES + tok.decode(output[0, ids.shape[1] :].tolist()) == one.text


def test_log_probability_is_the_models(tok):
    llama = random_model(tok, 3)
    text, protocol = FUNCTIONS[0]
    one = generate.greedy(llama, tok, [(text, protocol)], passes_only=True)[0]
    ids, _ = prompt.encode_prompt(text, protocol, tok)
    ids = [*ids, tok.ids[tokenizer.PASSES]]
    grammar = Grammar(tok)
    total, written = 0.0, []
    for number in [*(tok.ids[tokenizer.mark(p)] for p in one.answer.passes), tok.ids[BEFORE]]:
        with torch.no_grad():
            logits = llama(torch.tensor([ids + written])).logits[0, -1]
        allowed = grammar.allowed(grammar.walk(written))
        total += logits[allowed].log_softmax(-1)[allowed.index(number)].item()
        written.append(number)
    assert one.log_probability == pytest.approx(total, abs=1e-4)


def test_prompts_that_do_not_fit_say_so(tok):
    long = "define i32 @f(i32 %1) {\n" + "%2 = add i32 %1, 1\n" * 900 + "ret i32 %2\n}\n"
    made = generate.greedy(
        random_model(tok, 0), tok, [(long, "minsize"), FUNCTIONS[0]], passes_only=True
    )
    assert "does not fit" in made[0].answer.error and made[1].answer.passes
    assert generate.greedy(random_model(tok, 0), tok, []) == []
    with pytest.raises(InputError):
        generate.greedy(random_model(tok, 0), tok, FUNCTIONS, batch_size=0)
