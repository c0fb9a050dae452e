"""Coreset-NVP: values are learned from outcomes, saved without pickle, and put lists in order."""

import dataclasses

import numpy as np
import pytest

from llmopt import nvp
from llmopt.config import InputError

LISTS = (("gvn",), ("mem2reg", "simplifycfg"), ("-Os",))


@pytest.fixture(scope="module")
def learned(sample):
    """On functions with a loop the first list is best, on the others the second."""
    texts = list(sample.values())
    loops = np.array([nvp.count_features(text)["loops"] > 0 for text in texts])
    assert 3 <= loops.sum() <= len(texts) - 3
    saved = np.where(loops[:, None], [4.0, 1.0, np.nan], [-2.0, 3.0, np.nan])
    return texts, loops, nvp.fit(texts, saved, LISTS)


def test_the_list_that_saves_most_comes_first(learned):
    texts, loops, values = learned
    first = [values.rank(text)[0] for text in texts]
    right = [LISTS[0] if loop else LISTS[1] for loop in loops]
    assert np.mean([a == b for a, b in zip(first, right, strict=True)]) > 0.9
    for text in texts:
        order = values.rank(text)
        assert sorted(order) == sorted(LISTS) and order[-1] == LISTS[2]  # it always failed


def test_values_are_normalised_by_what_can_be_saved(learned):
    texts, loops, values = learned
    best = values.predict(texts).max(axis=1)
    assert np.abs(best - 1).mean() < 0.3


def test_saved_values_are_the_same(learned, tmp_path):
    texts, _, values = learned
    values.save(tmp_path / "values.safetensors")
    again = nvp.load(tmp_path / "values.safetensors")
    assert again.lists == LISTS and again.features == values.features
    assert np.allclose(again.predict(texts), values.predict(texts), atol=1e-4)
    assert [again.rank(text) for text in texts] == [values.rank(text) for text in texts]


def test_bad_input_is_one_line(learned, tmp_path):
    texts, _, values = learned
    with pytest.raises(InputError, match="no list beats -Oz"):
        nvp.fit(texts, np.zeros((len(texts), 3)), LISTS)
    path = tmp_path / "values.safetensors"
    with pytest.raises(InputError, match=r"values\.safetensors: no usable values"):
        nvp.load(path)
    for other in ({"lists": LISTS[:2]}, {"features": values.features[1:]}):
        dataclasses.replace(values, **other).save(path)
        with pytest.raises(InputError, match=r"values\.safetensors: no usable values"):
            nvp.load(path)
    values.save(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"values\.safetensors: no usable values"):
        nvp.load(path)
