"""LLVM in worker processes that may die: a crash, hang or memory blow-up costs one candidate.

A `Sandbox` owns one worker (this module, run as a program). Requests and results are JSON lines on
pipes; the worker arms a timer before each candidate and has a memory limit, so that it ends by
itself even when nobody is left to end it. The parent reads results in order, turns a death into a
typed `Run` for the candidate that caused it, starts another worker and goes on with the next.

Not covered: code that runs the *program* under test (that needs more than a time limit).
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from llmopt import llvm, passes
from llmopt.config import InputError
from llmopt.llvm import Module, Run

SECONDS = 10.0  # a candidate of one function takes about a millisecond
MEMORY_MB = 4096
KILLED = (signal.SIGKILL, signal.SIGTERM)  # by somebody else: the worker's own limits end otherwise
RETRIES = 2


@dataclass(frozen=True)
class Exploration:
    """One walk through a transposition table: the count after each pass up to the first that fails,
    how many of the passes had to be run (the others were looked up), and the failure, if any."""

    counts: list[int]
    new: int
    failure: Run | None = None


class Sandbox:
    """One restartable LLVM worker with limits per candidate: `seconds` of wall time, `memory_mb`
    of address space. Not thread-safe: one a thread (`shared()`)."""

    def __init__(self, seconds: float = SECONDS, memory_mb: int = MEMORY_MB):
        self.seconds, self.memory_mb = seconds, memory_mb
        self.deaths = 0
        self._worker: subprocess.Popen | None = None
        # The walks that made the transposition table, and the worker that has it: when somebody
        # kills that, the next makes the same table again.
        self._table: list = []
        self._table_of: subprocess.Popen | None = None
        self._stderr = tempfile.TemporaryFile()

    def run(
        self, ir: str, protocol: str, lists: Sequence[Sequence[str]], text: bool = False
    ) -> list[Run]:
        """One `Run` a list, in order, each applied to the function afresh (one compilation each).

        With `text`, the normalised result comes with it. Invalid `ir` gives `parse` for all."""
        lists = [passes.check(names) for names in lists]
        return self._ask({"do": "run", "ir": ir, "protocol": protocol, "text": text}, lists)

    def walk(self, ir: str, protocol: str, lists: Sequence[Sequence[str]]) -> list[list[Run]]:
        """Apply each list one pass at a time and count after each: every prefix for the price of
        the list. Returns a `Run` a prefix, up to the first that fails; where the worker died, one
        `Run` of the whole list."""
        lists = [passes.check(names) for names in lists]
        return self._ask({"do": "walk", "ir": ir, "protocol": protocol}, lists)

    def explore(
        self, ir: str, protocol: str, lists: Sequence[Sequence[str]], fresh: bool = True
    ) -> list[Exploration]:
        """Walks that share a transposition table: a pass that was run on the same code before, on
        whatever way the code was reached, is looked up and not run again.

        Unless `fresh`, the table of the last request goes on, if that was of the same function."""
        lists = [passes.check(names) for names in lists]
        request = {"do": "explore", "ir": ir, "protocol": protocol, "fresh": fresh}
        return self._ask(request, lists)

    def check(self, texts: Sequence[str], protocol: str = "stripped") -> list[Run]:
        """Parse and verify module texts that may be anything: count and canonical text of each."""
        return self._ask({"do": "check", "protocol": protocol}, list(texts))

    def _ask(self, request: dict, items: list) -> list:
        results: list = []
        killed: Counter[int] = Counter()  # how often somebody else ended the worker, by item
        exploring = request["do"] == "explore"
        if exploring and request["fresh"]:
            self._table = []
        while len(results) < len(items):
            worker = self._start()
            again: list = []
            if exploring and worker is not self._table_of:
                again, self._table_of = self._table, worker  # the walks that made the table
            try:
                line = json.dumps({**request, "items": again + items[len(results) :]})
                worker.stdin.write(line.encode() + b"\n")
                worker.stdin.flush()
                for _ in again:
                    worker.stdout.readline()
                while len(results) < len(items):
                    line = worker.stdout.readline()
                    if not line.endswith(b"\n"):
                        break
                    item = items[len(results)]
                    results.append(_decode(request["do"], item, json.loads(line)))
                    if exploring:
                        self._table.append(item)
            except BrokenPipeError:
                pass
            except BaseException:
                self.close()  # an interrupt leaves half-read answers in the pipe
                raise
            if len(results) < len(items):
                item = items[len(results)]
                failed = self._bury(() if request["do"] == "check" else item)
                if failed.signal in KILLED and killed[len(results)] < RETRIES:
                    killed[len(results)] += 1  # not the item's doing
                    continue
                self._table = []
                results.append(_dead(request["do"], failed))
        return results

    def _start(self) -> subprocess.Popen:
        if self._worker is None or self._worker.poll() is not None:
            if self._worker is not None:
                self._bury(())
            self._stderr.seek(0)
            self._stderr.truncate()
            self._worker = subprocess.Popen(
                [sys.executable, "-m", "llmopt.sandbox", str(self.seconds), str(self.memory_mb)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
            )
        return self._worker

    def _bury(self, names: tuple[str, ...]) -> Run:
        """The dead worker's last words as a result."""
        worker, self._worker = self._worker, None
        with suppress(BrokenPipeError):  # closing writes what was not read any more
            worker.stdin.close()
        worker.stdout.close()
        code = worker.wait()
        self.deaths += 1
        self._stderr.seek(0)
        said = self._stderr.read().decode(errors="replace").strip()
        number = -code if code < 0 else None
        if number == signal.SIGALRM:
            return Run(
                names,
                "timeout",
                message=f"no answer in {self.seconds:g} s",
                signal=number,
                seconds=self.seconds,
            )
        message = _first_words(said) or (signal.strsignal(number) if number else f"exit {code}")
        memory = any(word in said for word in ("out of memory", "bad_alloc", "MemoryError"))
        if memory or number == signal.SIGKILL:
            return Run(
                names, "memory", message=f"{message} (limit {self.memory_mb} MiB)", signal=number
            )
        return Run(names, "crash", message=message, signal=number)

    def close(self) -> None:
        """End the worker; the next request starts another."""
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
            with suppress(BrokenPipeError):
                self._worker.stdin.close()
            self._worker.stdout.close()
            self._worker = None

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
        self._stderr.close()

    def __del__(self) -> None:
        if getattr(self, "_stderr", None) is not None and not self._stderr.closed:
            self.__exit__()


_LOCAL = threading.local()


def shared() -> Sandbox:
    """This thread's own sandbox, started at first use and ended with the thread."""
    if not hasattr(_LOCAL, "sandbox"):
        _LOCAL.sandbox = Sandbox()
    return _LOCAL.sandbox


def _first_words(stderr: str) -> str:
    """What LLVM said, without the stack dump that follows."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    for line in lines:
        if "LLVM ERROR" in line or "Assertion" in line or "error:" in line:
            return line.strip()[:500]
    return " ".join(
        line.strip() for line in lines if not line.startswith(("PLEASE", "#", "Stack"))
    )[:500]


def _dead(kind: str, run: Run) -> object:
    if kind == "explore":
        return Exploration([], 1, run)
    return [run] if kind == "walk" else run


def _decode(kind: str, item: object, answer: object) -> object:
    if kind == "explore":
        counts, new, failed = answer
        length = len(counts) + 1
        return Exploration(
            counts, new, Run(item[:length], failed[0], message=failed[1]) if failed else None
        )
    if kind == "walk":
        return [Run(tuple(item[: step["length"]]), **_fields(step)) for step in answer]
    return Run(() if kind == "check" else tuple(item), **_fields(answer))


def _fields(answer: dict) -> dict:
    return {key: value for key, value in answer.items() if key != "length"}


# --- the worker --------------------------------------------------------------------------------


def _run(module: Module, names: Sequence[str], text: bool) -> dict:
    return _row(llvm.apply(module, tuple(names), text))


def _row(run: Run, **more: object) -> dict:
    """Only what differs from the defaults travels."""
    row = {
        "status": run.status,
        "count": run.count,
        "text": run.text,
        "message": run.message,
        "seconds": run.seconds,
    }
    return {key: value for key, value in row.items() if value not in (None, "", "ok")} | more


def _walk(module: Module, names: Sequence[str]) -> list[dict]:
    steps: list[dict] = []
    with module.copy() as copy:
        for length, name in enumerate(names, start=1):
            try:
                copy.run(passes.pipeline([name]))
                status, message = "invalid", copy.verify()
            except InputError as error:
                status, message = "refused", str(error)
            if message:
                steps.append({"status": status, "message": message, "length": length})
                break
            steps.append({"count": copy.count(), "length": length})
    return steps


class _Table:
    """The transposition table of one function: code by its digest, and where each pass leads from
    there. A move that failed leads to [status, message]."""

    def __init__(self, module: Module):
        self._module = module
        self._counts: dict[bytes, int] = {}
        self._texts: dict[bytes, bytes] = {}
        self._moves: dict[tuple[bytes, str], bytes | list[str]] = {}
        with module.copy() as start:
            self._start = self._state(start)

    def _state(self, module: Module) -> bytes | list[str]:
        text = module.text().encode()
        state = hashlib.blake2b(text, digest_size=12).digest()
        if state not in self._counts:
            broken = module.verify()
            if broken:
                return ["invalid", broken]
            # An instruction is a line with an indent of two; deeper lines go on with the one above.
            lines = text.count(b"\n  ") - text.count(b"\n   ") - text.count(b"\n  ]")
            self._counts[state], self._texts[state] = lines, text
        return state

    def _run(self, module: Module, name: str) -> bytes | list[str]:
        try:
            module.run(passes.SPACE[name].text)
        except InputError as error:
            return ["refused", str(error)]
        return self._state(module)

    def walk(self, names: Sequence[str]) -> tuple[list[int], int, list[str] | None]:
        counts: list[int] = []
        state, module, new, failed = self._start, None, 0, None
        try:
            for name in names:
                move = self._moves.get((state, name))
                if move is None:
                    if module is None:
                        module = self._module.at(self._texts[state])
                    move = self._moves[state, name] = self._run(module, name)
                    new += 1
                elif module is not None and move != state:
                    module.close()
                    module = None
                if isinstance(move, list):
                    failed = move
                    break
                state = move
                counts.append(self._counts[state])
        finally:
            if module is not None:
                module.close()
        return counts, new, failed


def _check(text: str, protocol: str) -> dict:
    try:
        with Module(text, protocol) as module:
            return {"count": module.count(), "text": module.normalised()}
    except llvm.IRError as error:
        where = f"line {error.line}: " if error.line else ""
        return {"status": "parse", "message": f"{where}{error.reason}"}


class _Cached:
    """The module of the last request: searches ask about one function many times over."""

    def __init__(self) -> None:
        self._key: tuple[str, str] | None = None
        self._module: Module | None = None
        self._table: _Table | None = None

    def get(self, ir: str, protocol: str) -> Module:
        if self._key != (ir, protocol):
            if self._module is not None:
                self._module.close()
            self._key, self._module, self._table = None, None, None
            self._module = Module(ir, protocol)
            self._key = (ir, protocol)
        return self._module

    def table(self, fresh: bool) -> _Table:
        if self._table is None or fresh:
            self._table = _Table(self._module)
        return self._table


def _answer(request: dict, cached: _Cached):
    """A function from item to JSON value, for one request."""
    if request["do"] == "check":
        return partial(_check, protocol=request["protocol"])
    try:
        module = cached.get(request["ir"], request["protocol"])
    except llvm.IRError as error:
        failure = {"status": "parse", "message": str(error)}
        if request["do"] == "walk":
            return lambda item: [failure | {"length": len(item)}]
        if request["do"] == "explore":
            return lambda item: ([], 1, [failure["status"], failure["message"]])
        return lambda item: failure
    if request["do"] == "explore":
        return cached.table(request["fresh"]).walk
    if request["do"] == "walk":
        return partial(_walk, module)
    return partial(_run, module, text=request["text"])


def main(seconds: float, memory_mb: int) -> None:
    """Serve requests until standard input ends."""
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    cached = _Cached()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)  # parsing may hang, too
        answer = _answer(request, cached)
        for item in request["items"]:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            reply = json.dumps(answer(item))
            signal.setitimer(signal.ITIMER_REAL, 0)
            sys.stdout.write(reply + "\n")
            sys.stdout.flush()
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
