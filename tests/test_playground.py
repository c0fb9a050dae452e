"""The playground's widgets, driven as a reader would; and its states for a static page."""

import re

import pytest

from llmopt import ir
from llmopt.config import InputError
from llmopt.playground import COMMON, playground, playground_states


@pytest.fixture
def play(sample):
    return playground({name: sample[name] for name in ("gcd", "crc32")})


def counts(play) -> tuple[int, int, int]:
    """Instructions before, after the list, after -Oz: as they are on the screen."""
    line = re.search(r'<p aria-live="polite">(.*?)</p>', play.view.value)[1]
    bold = re.findall(r"<strong>(\d+)</strong>", line)
    return tuple(map(int, bold))


def test_starts_with_the_first_function_as_it_is(play, sample):
    before, after, oz = counts(play)
    assert before == after == ir.count(sample["gcd"]) and oz < before
    assert play.view.value.count('role="img"') == 2 and play.view.value.count("<pre") == 2


def test_buttons_build_the_list_and_the_view_follows(play):
    play.passes["sroa<modify-cfg>"].click()
    one = counts(play)
    assert one[1] < one[0]
    play.passes["simplifycfg"].click()
    assert play.list.value == "sroa<modify-cfg>,simplifycfg"
    assert counts(play)[1] <= one[1]
    play.undo.click()
    assert play.list.value == "sroa<modify-cfg>" and counts(play) == one
    play.clear.click()
    assert play.list.value == "" and counts(play)[0] == counts(play)[1]
    play.undo.click()
    assert counts(play) == one
    play.undo.click()
    assert play.list.value == "" and play.undo.disabled


def test_the_list_can_be_typed_and_function_and_protocol_changed(play):
    play.list.value = "-Oz"
    assert counts(play)[1] == counts(play)[2]
    play.function.value = "crc32"
    small = counts(play)
    play.protocol.value = "stripped"
    assert "crc32" in play.view.value and counts(play)[2] > small[2]


def test_a_mistake_is_a_line_and_goes_away(play):
    play.list.value = "gvnn"
    assert "did you mean &#x27;gvn&#x27;" in play.view.value and 'role="alert"' in play.view.value
    play.passes["gvn"].click()
    assert play.list.value == "gvnn,gvn" and 'role="alert"' in play.view.value
    play.undo.click()
    play.undo.click()
    assert 'role="alert"' not in play.view.value and play.undo.disabled


def test_every_button_is_of_the_search_space(play):
    assert set(play.passes) == set(COMMON)
    for button in play.passes.values():
        play.clear.click()
        button.click()
        assert 'role="alert"' not in play.view.value, button.description


def test_bad_input_is_said(sample):
    with pytest.raises(InputError, match="no functions"):
        playground({})
    with pytest.raises(InputError, match="did you mean 'minsize'"):
        playground(sample, "minsiz")
    with pytest.raises(InputError, match="no lists"):
        playground_states(sample["gcd"], "minsize", [])
    with pytest.raises(InputError, match="did you mean 'gvn'"):
        playground_states(sample["gcd"], "minsize", ["gvnn"])


def test_static_states_need_no_kernel(sample):
    page = playground_states(
        sample["gcd"], "stripped", ["", "sroa", "sroa,loop-rotate"], "gcd"
    ).data
    assert page.count("<details>") == page.count("</details>") == 3
    assert page.count('role="img"') == 6 and "<script" not in page and " id=" not in page
    summaries = re.findall(r"<summary>(.*?)</summary>", page)
    assert "(no passes)" in summaries[0] and "loop-rotate" in summaries[2]
