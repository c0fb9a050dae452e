"""Presets: parameter counts, seeds, and shapes that attend only to the left."""

import pytest
import torch

from llmopt import model
from llmopt.config import InputError


def test_the_paper_model_has_6_74_billion_parameters():
    assert model.parameters("llama2-7b", 32000) == 6_738_415_616


@pytest.mark.parametrize(
    "preset, low, high",
    [("smoke", 0.1e6, 0.3e6), ("classroom", 0.5e6, 2e6), ("reference", 5e6, 8e6)],
)
def test_sizes_of_the_presets(preset, low, high):
    assert low <= model.parameters(preset, 2048) <= high


def test_the_seed_decides_the_weights_and_nothing_else_does():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, again, other = (model.build("smoke", 64, seed) for seed in (1, 1, 2))
    assert torch.rand(1) == expected  # the caller's random state is untouched
    first, again, other = (
        m.state_dict()["model.norm.weight"] * 0 + m.lm_head.weight.sum()
        for m in (first, again, other)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_later_tokens_do_not_change_earlier_logits():
    llama = model.build("smoke", 64, seed=0).eval()
    ids = torch.arange(20)[None]
    changed = ids.clone()
    changed[0, 12:] = 7
    with torch.no_grad():
        a, b = llama(ids).logits, llama(changed).logits
    assert a.shape == (1, 20, 64)
    assert torch.allclose(a[:, :12], b[:, :12], atol=1e-6) and not torch.allclose(a, b)


def test_bad_names_and_sizes_are_refused():
    with pytest.raises(InputError, match="did you mean 'classroom'"):
        model.build("clasroom", 64, 0)
    with pytest.raises(InputError):
        model.build("smoke", 0, 0)


@pytest.mark.parametrize(
    ("instructions", "seconds", "wanted"),
    [(False, (4.0, 1.0), "no"), (True, (4.0, 3.0), "no"), (True, (4.0, 1.0), "bf16")],
)
def test_bfloat16_is_used_where_it_is_faster(monkeypatch, instructions, seconds, wanted):
    capabilities = {"avx512_bf16": instructions}
    monkeypatch.setattr(model.torch.cpu, "get_capabilities", lambda: capabilities)
    timed = iter(seconds)
    monkeypatch.setattr(model.timeit, "repeat", lambda *_, **__: [next(timed), 9.0])
    model._bfloat16_pays.cache_clear()
    try:
        assert model.fast_precision() == wanted
    finally:
        model._bfloat16_pays.cache_clear()
