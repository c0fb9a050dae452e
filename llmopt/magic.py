"""`%%passes`: a notebook cell of C, C++ or LLVM-IR, and what a pass list does to it.

    %load_ext llmopt.magic

    %%passes --protocol stripped sroa,gvn,simplifycfg
    int twice(int x) { return x + x; }

Options come before the list: `--protocol stripped|minsize` (default `minsize`), and `--c`, `--cpp`
or `--ir` where the guess at the language is wrong. `sroa` stands for the first `sroa<…>` of the
search space. The code is compiled in a temporary folder and never run.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from IPython.core.error import UsageError
from IPython.display import HTML, display

from llmopt import display as views
from llmopt import extract
from llmopt.config import InputError, check_protocol, nearest

SUFFIXES = {"--c": ".c", "--cpp": ".cpp", "--ir": ".ll"}
_IR = re.compile(
    r"^\s*(?:define|declare|target (?:datalayout|triple)|source_filename|[%@][-\w$.\"]+ =)\s", re.M
)
_CPP = re.compile(
    r"\b(?:template\s*<|class\s+\w+\s*[:{]|namespace\b|using\b|nullptr\b|constexpr\b|operator\b)"
    r"|\w::\w|^\s*#\s*include\s*<\w+>"
    r"|\b(?:const\s+\w+|auto|bool|char|short|int|long|unsigned|float|double)\s*&",
    re.M,
)


def options(line: str) -> tuple[str, str | None, tuple[str, ...]]:
    """The magic's line: protocol, suffix of the language's files (None: to be guessed), list.

    Raises `InputError` on an unknown option, protocol or pass.
    """
    protocol, suffix = "minsize", None
    words = line.replace("--protocol=", "--protocol ").split()
    while words and words[0].startswith("--"):
        word = words.pop(0)
        if word in SUFFIXES:
            suffix = SUFFIXES[word]
        elif word == "--protocol":
            protocol = check_protocol(words.pop(0) if words else "")
        else:
            known = ("--protocol", *SUFFIXES)
            raise InputError(
                f"%%passes: unknown option {word}{nearest(word, known)}: use {' '.join(known)}"
            )
    return protocol, suffix, views.pass_list(" ".join(words))


def guess(code: str) -> str:
    """The suffix that a file of this code would have: `.ll`, `.cpp` or `.c`."""
    if _IR.search(code):
        return ".ll"
    return ".cpp" if _CPP.search(code) else ".c"


def functions(code: str, suffix: str) -> dict[str, str]:
    """Normalised IR by function of a text of C, C++ or LLVM-IR.

    Raises `InputError` with the line where the text is none of these, and where it defines nothing.
    """
    if not code.strip():
        raise InputError("the cell is empty: write a function of C, C++ or LLVM-IR below %%passes")
    with tempfile.TemporaryDirectory(prefix="llmopt-") as folder:
        Path(folder, f"cell{suffix}").write_text(code)
        found = extract.read_file(extract.Task(folder, f"cell{suffix}"))
    if found["error"]:
        raise InputError(found["error"])
    for reason, names in found["rejected"].items():
        raise InputError(f"LLVM refuses {', '.join(names[:3])}: {reason}")
    if not found["functions"]:
        inline = " but inline ones" if found["headers"] else ""
        raise InputError(f"the cell defines no functions{inline}: write one with a body")
    return {name: text for name, text, _ in found["functions"]}


def show(line: str, cell: str) -> list[HTML]:
    """What `%%passes` shows: a view a function. A list that fails on one function is said in its
    place, and the others go on."""
    protocol, suffix, names = options(line)
    try:
        found = functions(cell, suffix or guess(cell))
    except InputError as error:
        if suffix or not cell.strip():
            raise
        read = {".c": "C", ".cpp": "C++", ".ll": "LLVM-IR"}[guess(cell)]
        raise InputError(f"{error} (read as {read}; else say {' or '.join(SUFFIXES)})") from None
    shown = []
    for name, text in found.items():
        try:
            shown.append(views.effect(text, protocol, names, name))
        except InputError as error:
            shown.append(views.problem(f"{name}: {error}"))
    return shown


def passes(line: str, cell: str) -> None:
    """%%passes [--protocol stripped|minsize] [--c|--cpp|--ir] PASS,PASS,...

    Show what a pass list does to each function of the cell: instruction counts before, after the
    list and after -Oz, and the code before and after side by side.
    """
    try:
        shown = show(line, cell)
    except InputError as error:
        raise UsageError(str(error)) from None  # a line, no traceback; the cell has failed
    display(*shown)


def load_ipython_extension(shell: object) -> None:
    """`%load_ext llmopt.magic` comes here."""
    shell.register_magic_function(passes, "cell", "passes")
