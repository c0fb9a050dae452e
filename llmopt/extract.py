"""One source file to its functions: compiled, split, normalised and checked by LLVM.

What comes out is a JSON value, so that long work can keep it in a journal. Which files, and what
becomes of their functions, is `corpus`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from llmopt import frontend, ir, sandbox


@dataclass(frozen=True)
class Task:
    """One source file and how to compile it; travels to a worker. Functions of more than
    `max_chars` characters are only counted."""

    root: str
    file: str
    includes: tuple[str, ...] = ()
    defines: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    max_chars: int | None = None


def read_file(task: Task) -> dict:
    """One file to its functions, as a JSON value.

    `functions` is a list of [name, normalised IR, instruction count]; `headers` counts functions
    that belong to headers, `too_long` those over the limit; `rejected` maps what LLVM says to the
    functions it does not take; `error` is the one reason why the file gave nothing.
    """
    path = Path(task.root, task.file)
    found: dict = {"error": None, "headers": 0, "functions": [], "too_long": 0, "rejected": {}}
    if path.suffix.lower() in (".ll", ".bc"):
        text, found["error"] = _canonical(path)
    else:
        done = frontend.compile(
            Path(task.file), None, task.includes, task.defines, task.flags, cwd=Path(task.root)
        )
        text, found["error"], found["headers"] = done.ir, done.error, done.headers
    if found["error"]:
        return found
    limit = task.max_chars or len(text) * 2
    every = ir.split(text)
    parts = {name: part for name, part in every.items() if len(part) <= limit}
    found["too_long"] = len(every) - len(parts)
    for name, run in zip(parts, sandbox.shared().check(list(parts.values())), strict=True):
        if run.ok:
            found["functions"].append([name, run.text, run.count])
        else:
            reason = re.sub(r"^line \d+: |'[!%@][^']*'", "", run.message)  # to group by
            found["rejected"].setdefault(reason, []).append(name)
    return found


def _canonical(path: Path) -> tuple[str, str | None]:
    """A file of IR as LLVM itself prints it, or why not; values numbered, as clang's are."""
    if path.suffix.lower() == ".ll":
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            return "", f"{path.name}:1: not text, so not LLVM-IR"
        run = sandbox.shared().check([text], protocol=None)[0]
        where = re.sub(r"^line (\d+): ", r"\1: ", run.message)
        colon = ":" if where != run.message else ": "
        return (run.text, None) if run.ok else ("", f"{path.name}{colon}{where}")
    if path.read_bytes()[:4] not in (b"BC\xc0\xde", b"\xde\xc0\x17\x0b"):
        return "", f"{path.name}: not LLVM bitcode"
    # LLVM may crash on damaged bitcode: a process of its own.
    code = (
        "import sys; from llmopt import llvm; "
        "sys.stdout.write(llvm.canonical(open(sys.argv[1], 'rb').read(), None))"
    )
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        return "", f"{path.name}: LLVM gave no answer in 60 s"
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"LLVM ended with {done.returncode}"])[-1]
        return "", f"{path.name}: {last.partition('Error: ')[2] or last}"
    return done.stdout, None
