"""A byte-level BPE made for LLVM-IR, with one token for each pass, protocol and section mark.

The paper uses Llama 2's tokenizer, which spends a token on 2.02 characters of IR (Section III).
Here names (`%12`, `@f`) and the digits of numbers stand alone, and all that lies between them, line
ends included, may merge: `, align ` becomes one token. Marks are never looked for in text: a string
constant that reads `<|end|>` stays text. `adopt` fits the marks onto any other local tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Core

from llmopt import passes
from llmopt.config import PROTOCOLS, InputError


def mark(name: str) -> str:
    """The token of a pass, protocol or section: `<|sroa<modify-cfg>|>`, `<|minsize|>`, `<|end|>`"""
    return f"<|{name}|>"


PAD, INPUT, PASSES, BEFORE, AFTER, CODE, END = SECTIONS = tuple(
    mark(name) for name in ("pad", "input", "passes", "before", "after", "code", "end")
)
MARKS = (*SECTIONS, *(mark(name) for name in PROTOCOLS), *(mark(name) for name in passes.SPACE))
BYTES = 256

# One alternative each for quoted names, names, digits of numbers, and everything between those.
# A digit inside a word (`i32`, `llvm.smax.i64`) belongs to the word.
PIECES = (
    r'[%@]"[^"\n]*"'
    r"|[%@][-\w$.]+"
    r"|[0-9]"
    r'|(?:[A-Za-z_][\w.]*|[^%@0-9A-Za-z_]|[%@](?![-\w$.]|"[^"\n]*"))+'
)


class Tokenizer:
    """A `tokenizers` core that encodes text as text only, and knows the ids of our marks."""

    def __init__(self, core: Core):
        core.encode_special_tokens = True  # marks inside text are text
        self.core = core
        self.ids = {token: core.token_to_id(token) for token in MARKS}
        self.marks = {number: token for token, number in self.ids.items()}

    def __len__(self) -> int:
        return self.core.get_vocab_size(with_added_tokens=True)

    @cached_property
    def pass_ids(self) -> dict[int, str]:
        """The id of each pass token, with the pass it stands for."""
        return {self.ids[mark(name)]: name for name in passes.SPACE}

    @cached_property
    def digit_ids(self) -> list[int]:
        """Ids that a count is written with: the ten digits (and a foreign word-start sign)."""
        vocabulary = self.core.get_vocab(with_added_tokens=False)
        return sorted(
            number
            for token, number in vocabulary.items()
            if re.fullmatch(r"▁|▁?[0-9]", token) and number not in self.marks
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text. No mark is recognised in it, nothing is added around it."""
        return self.core.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, marks spelt out; `decode(encode(text)) == text` for every text."""
        parts, text = [], []
        for number in [*ids, None]:
            if number is None or number in self.marks:
                if text:
                    parts.append(self.core.decode(text, skip_special_tokens=False))
                    text = []
                parts.append(self.marks.get(number, ""))
            else:
                text.append(int(number))
        return "".join(parts)

    def save(self, directory: Path) -> None:
        """Write `tokenizer.json` and the configuration that `AutoTokenizer` reads with it."""
        from transformers import PreTrainedTokenizerFast

        PreTrainedTokenizerFast(
            tokenizer_object=self.core,
            pad_token=PAD,
            eos_token=END,
            clean_up_tokenization_spaces=False,
        ).save_pretrained(directory)


def train(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """Learn `vocabulary` tokens, marks and the 256 bytes included, from the texts.

    The same texts in the same order give the same bytes. Raises `InputError` on no text, and on a
    vocabulary too small for marks and bytes.
    """
    least = len(MARKS) + BYTES
    if vocabulary < least:
        raise InputError(
            f"a vocabulary of {vocabulary}: {len(MARKS)} marks and {BYTES} bytes need {least}"
        )
    texts = list(texts)
    if not any(texts):
        raise InputError("no text to train a tokenizer on: build the corpus first")
    core = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[AddedToken(token, special=True, normalized=False) for token in MARKS],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            max_token_length=40,  # no single token for a whole boiler-plate line
            show_progress=False,
        ),
    )
    return Tokenizer(core)


def _read(directory: Path) -> Core:
    path = Path(directory) / "tokenizer.json"
    older = Path(directory) / "encoder.json", Path(directory) / "vocab.bpe"  # GPT-2's own form
    if not path.is_file() and all(part.is_file() for part in older):
        core = Core(models.BPE.from_file(*map(str, older)))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        return core
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a folder that holds a trained tokenizer")
    try:
        return Core.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise InputError(
            f"{path}: not a readable tokenizer ({str(error).splitlines()[0]}); train it again"
        ) from None


def load(directory: Path) -> Tokenizer:
    """A tokenizer that `Tokenizer.save` wrote.

    Raises `InputError` that names the file where it is missing, damaged, or lacks our marks.
    """
    core = _read(directory)
    lacking = [token for token in MARKS if core.token_to_id(token) is None]
    if lacking:
        raise InputError(
            f"{Path(directory) / 'tokenizer.json'}: lacks {len(lacking)} of our marks, "
            f"{lacking[0]!r} first; train it again, or adopt it as a foreign tokenizer"
        )
    return Tokenizer(core)


def adopt(where: Path | str) -> Tokenizer:
    """Any other tokenizer with our marks added after its tokens: of a folder with a Hugging Face
    `tokenizer.json` (or GPT-2's two files), or of the hub by its name.

    `adopt("meta-llama/Llama-2-7b-hf")` is the paper's, for those who have been given access to it.
    Raises `InputError` where it is not to be had.
    """
    if Path(where).is_dir():
        core = _read(Path(where))
    else:
        try:
            core = Core.from_pretrained(str(where))
        except Exception as error:  # the library raises a bare Exception
            raise InputError(
                f"{where}: neither a folder nor a tokenizer that the hub gives out here "
                f"({str(error).splitlines()[0]})"
            ) from None
    core.no_padding()
    core.no_truncation()
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in MARKS])
    return Tokenizer(core)
