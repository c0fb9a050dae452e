import fnmatch
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmopt import llvm, passes
from llmopt.config import InputError

LISTS = st.lists(st.sampled_from([p for p in passes.SPACE if p not in passes.META]), max_size=40)


def known_to_opt() -> set[str]:
    """Every pass over IR that this LLVM knows, parameters cut off where they are named."""
    done = subprocess.run([llvm.find_opt(), "--print-passes"], capture_output=True, text=True)
    names, heading = set(), ""
    for line in done.stdout.splitlines():
        if not line.startswith(" "):
            heading = line
        elif "analyses" not in heading and "Machine" not in heading:
            parameters = "with params" in heading
            names.add(line.split("<")[0].strip() if parameters else line.strip())
    return names


def test_every_pass_of_llvm_is_in_the_space_or_left_out_with_a_reason():
    space = {name.split("<")[0] for name in passes.SPACE if name not in passes.META}
    known = known_to_opt()
    assert len(known) > 300
    unexplained = {
        name
        for name in known - {"default"}
        if name not in space and not any(fnmatch.fnmatch(name, p) for p in passes.EXCLUDED)
    }
    assert unexplained == set()
    assert space <= known
    assert not space & set(passes.EXCLUDED)
    assert all(any(fnmatch.fnmatch(n, p) for n in known) for p in passes.EXCLUDED)
    assert all(len(reason) > 10 for reason in passes.EXCLUDED.values())


def test_the_space_is_large_and_has_every_kind():
    assert len(passes.SPACE) - len(passes.META) >= 100
    kinds = {entry.kind for entry in passes.SPACE.values()}
    assert kinds == {"module", "cgscc", "function", "loop", "loop-mssa", "meta"}


def test_llvm_takes_every_pass_of_the_space(sample):
    with llvm.Module(sample["crc32"]) as module:
        for name in passes.SPACE:
            run = llvm.apply(module, (name,))
            assert run.ok, f"{name}: {run.message}"


def test_passes_are_deterministic(sample):
    for name in passes.SPACE:
        texts = set()
        for _ in range(2):
            with llvm.Module(sample["edit_distance"]) as module:
                texts.add(llvm.apply(module, ("sroa<modify-cfg>", name), text=True).text)
        assert len(texts) == 1, name


@given(LISTS)
def test_parse_and_format_round_trip(names):
    assert passes.parse(passes.format(names)) == tuple(names)


def test_nesting_is_derived():
    flat = passes.parse("sroa<modify-cfg>, licm,indvars,inline,globaldce,-Oz")
    assert passes.pipeline(flat) == (
        "function(sroa<modify-cfg>),function(loop-mssa(licm)),function(loop(indvars)),"
        "cgscc(inline),globaldce,default<Oz>"
    )


def test_the_empty_list_is_a_list():
    assert passes.parse("") == () and passes.pipeline(()) == ""


def test_an_unknown_pass_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="unknown pass 'simplfycfg' .did you mean 'simplifycfg'"):
        passes.parse("sroa<modify-cfg>,simplfycfg")


def test_a_second_meta_flag_is_refused():
    with pytest.raises(InputError, match="at most one of"):
        passes.parse("-Oz,licm,-O3")


@pytest.mark.parametrize("text", ["licm,,gvn", "licm gvn", "gvn<no-pre", ",licm", "gvn<<x>>"])
def test_text_that_is_no_list_is_refused(text):
    with pytest.raises(InputError):
        passes.parse(text)
