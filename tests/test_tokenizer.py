"""The tokenizer: exact round trips, marks that text cannot forge, bytes that repeat."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core
from tokenizers import models, pre_tokenizers

from llmopt import tokenizer
from llmopt.config import ROOT, InputError

IR = """%T0 = type { i32, [4 x i8] }
define i32 @f0(i32 %0, ptr %1) {
%3 = alloca i32, align 4
store i32 %0, ptr %3, align 4
%4 = load i32, ptr %3, align 4
%12 = icmp slt i32 %4, 128
br i1 %12, label %13, label %14
13:
%15 = call i32 @f1(i64 -70)
ret i32 %15
14:
ret i32 0
}
declare i32 @f1(i64)
"""


@pytest.fixture(scope="module")
def tok():
    return tokenizer.train([IR * 3, IR.replace("i32", "i64")], 520)


@given(st.text(max_size=80) | st.text(alphabet='%@"<|end>1 i32\n\r\t.x', max_size=80))
@settings(max_examples=300, deadline=None)
def test_any_text_round_trips(tok, text):
    assert tok.decode(tok.encode(text)) == text


@given(st.binary(max_size=80))
@settings(deadline=None)
def test_any_bytes_round_trip(tok, data):
    text = data.decode("latin-1")
    assert tok.decode(tok.encode(text)).encode("latin-1") == data


def test_pieces_are_names_digits_and_what_lies_between(tok):
    text = "store i32 %12, ptr @f0, align 16\nret i64 -70\n"
    pieces = [tok.decode([i]) for i in tok.encode(text)]
    assert "%12" in pieces and "@f0" in pieces and {"7", "0", "1", "6"} <= set(pieces)
    assert not any("%" in p and not p.startswith("%") for p in pieces)
    assert len(tok.encode(IR)) < len(IR) / 3


def test_text_cannot_forge_marks(tok):
    for token in tokenizer.MARKS:
        ids = tok.encode(f'c"{token}"')
        assert not set(ids) & set(tok.marks)
        assert tok.decode(ids) == f'c"{token}"'
        assert tok.decode([tok.ids[token]]) == token
    assert len(tok.digit_ids) == 10


def test_training_repeats_to_the_byte(tmp_path):
    code = (
        "import sys; from pathlib import Path; from llmopt import tokenizer;"
        "tokenizer.train([Path(sys.argv[1]).read_text()] * 3, 480).save(Path(sys.argv[2]))"
    )
    (tmp_path / "ir.ll").write_text(IR)
    for name in ("a", "b"):
        args = [sys.executable, "-c", code, str(tmp_path / "ir.ll"), str(tmp_path / name)]
        subprocess.run(args, check=True, cwd=ROOT)
    first, second = ((tmp_path / n / "tokenizer.json").read_bytes() for n in ("a", "b"))
    assert first == second


def test_saved_tokenizer_loads_here_and_in_transformers(tok, tmp_path):
    from transformers import AutoTokenizer

    tok.save(tmp_path)
    ids = tok.encode(IR)
    assert tokenizer.load(tmp_path).encode(IR) == ids
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert theirs(IR)["input_ids"] == ids and theirs.decode(ids) == IR
    assert theirs.eos_token == tokenizer.END and len(theirs) == len(tok)


def test_bad_folders_are_refused_by_name(tok, tmp_path):
    with pytest.raises(InputError, match=r"tokenizer\.json: no such file"):
        tokenizer.load(tmp_path)
    tok.save(tmp_path)
    path = tmp_path / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=r"tokenizer\.json: not a readable"):
        tokenizer.load(tmp_path)
    Core(models.BPE()).save(str(path))
    with pytest.raises(InputError, match="lacks"):
        tokenizer.load(tmp_path)


def test_a_foreign_tokenizer_is_adopted(tmp_path):
    # Llama 2's shape: a sign for the start of a word, byte fallback, a prefix on each text.
    from tokenizers import decoders, normalizers

    letters = ["<unk>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abcdefghilnrt%0123456789"]
    core = Core(
        models.BPE(
            {c: i for i, c in enumerate(letters)},
            [],
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    core.save(str(tmp_path / "tokenizer.json"))
    tok = tokenizer.adopt(tmp_path)
    text = " ret i8 %1\n <|end|>"
    assert tok.decode(tok.encode(text)) == text
    assert len(tok) == len(letters) + len(tokenizer.MARKS)
    ids = [tok.ids[tokenizer.BEFORE], *tok.encode("12"), tok.ids[tokenizer.AFTER]]
    assert tok.decode(ids) == "<|before|>12<|after|>"
    assert len(tok.digit_ids) == 11


def test_gpt2s_two_files_are_adopted(tmp_path):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {sign: i for i, sign in enumerate([*alphabet, "Ġi", "Ġi3"])}
    (tmp_path / "encoder.json").write_text(json.dumps(words))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nĠ i\nĠi 3\n")
    tok = tokenizer.adopt(tmp_path)
    assert [tok.decode([n]) for n in tok.encode("add i32")] == ["a", "d", "d", " i", "3", "2"]
    assert len(tok) == len(words) + len(tokenizer.MARKS)


def test_a_tokenizer_that_is_not_to_be_had_is_named(tmp_path):
    with pytest.raises(InputError, match="no-one/nothing: neither a folder nor"):
        tokenizer.adopt("no-one/nothing")
    with pytest.raises(InputError, match=r"tokenizer\.json: no such file"):
        tokenizer.adopt(tmp_path)


def test_too_little_to_train_on_is_refused():
    with pytest.raises(InputError, match="vocabulary of 300"):
        tokenizer.train([IR], 300)
    with pytest.raises(InputError, match="no text"):
        tokenizer.train([""], 600)
