"""A journal for long work: what is finished is on disk before it is reported.

`run` maps a function over items through any `concurrent.futures` executor (a local process pool,
or `distributed.Client(...).get_executor()`). Killed at any moment, it goes on with what is missing;
the values do not depend on the order in which they were finished.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path

from llmopt.config import InputError

CHUNK = 32  # texts that `ask` asks about together


class Journal:
    """A durable dictionary from string keys to JSON values, in one SQLite file."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        try:
            with ExitStack() as failed:
                self._db = sqlite3.connect(path, timeout=60, isolation_level=None)
                failed.callback(self.close)
                self._db.execute("pragma journal_mode=wal")
                self._db.execute("pragma synchronous=normal")
                self._db.execute(
                    "create table if not exists done (key text primary key, value text)"
                )
                failed.pop_all()
        except sqlite3.DatabaseError as error:
            foreign = "not a database" in str(error) or "malformed" in str(error)
            mend = "delete it to start afresh" if foreign else "mend that and run it again"
            raise InputError(f"{path}: not a usable journal ({error}); {mend}") from None

    def get(self, key: str) -> dict | None:
        row = self._db.execute("select value from done where key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, value: dict) -> None:
        try:
            self._db.execute("insert or replace into done values (?, ?)", (key, json.dumps(value)))
        except sqlite3.OperationalError as error:  # a full disk, most of all
            raise InputError(
                f"{self.path}: cannot record results ({error}); what was recorded is kept: "
                "free some space and run the same command again"
            ) from None

    def keys(self) -> set[str]:
        return {row[0] for row in self._db.execute("select key from done")}

    def items(self) -> Iterator[tuple[str, dict]]:
        """Every entry, by key: the order in which work was finished leaves no trace."""
        for key, value in self._db.execute("select key, value from done order by key"):
            yield key, json.loads(value)

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def run(
    journal: Journal,
    fn: Callable[[object], dict],
    items: Mapping[str, object],
    executor: Executor | None = None,
    on_done: Callable[[str, dict], None] | None = None,
) -> None:
    """Put `fn(item)` under its key for every item that the journal lacks.

    At most a few tasks per worker are in flight, so that an interrupt loses little. On an exception
    in `fn` or an interrupt, what is finished is recorded first and the exception raised then.
    """
    done = journal.keys()
    todo = iter([(key, item) for key, item in items.items() if key not in done])

    def record(key: str, value: dict) -> None:
        journal.put(key, value)
        if on_done:
            on_done(key, value)

    if executor is None:
        for key, item in todo:
            record(key, fn(item))
        return
    flying: dict = {}
    try:
        while True:
            for key, item in todo:
                flying[executor.submit(fn, item)] = key
                if len(flying) >= 32:
                    break
            if not flying:
                return
            for future in wait(flying, return_when=FIRST_COMPLETED).done:
                record(flying.pop(future), future.result())
    finally:
        for future in flying:
            future.cancel()
        for future, key in flying.items():
            if future.done() and not future.cancelled() and future.exception() is None:
                record(key, future.result())


def ask(
    journal: Journal,
    load: Callable[[], Callable[[list[str]], list[dict]]],
    texts: Mapping[str, str],
    on_done: Callable[[int], None] | None = None,
) -> None:
    """Like `run`, for what reads many texts at once, as a language model does: `load()` is what
    gives their values in order, and is called only where the journal lacks some.

    Like lengths go together: little padding. A chunk is asked whole or not at all, so that a value
    never depends on where a run was interrupted. `on_done` is told of texts.
    """
    known = journal.keys()
    if known.issuperset(texts):
        return
    values = load()
    order = sorted(texts, key=lambda key: len(texts[key]))
    for start in range(0, len(order), CHUNK):
        chunk = order[start : start + CHUNK]
        if not known.issuperset(chunk):
            for key, value in zip(chunk, values([texts[key] for key in chunk]), strict=True):
                journal.put(key, value)
            if on_done:
                on_done(len(chunk))


@contextmanager
def workers(count: int | None = None, scheduler: str | None = None) -> Iterator[Executor]:
    """The executor that long work runs on: `count` local workers (all cores by default), or the
    Dask cluster at the address `scheduler`.

    Local workers are threads: each drives processes of its own (`sandbox`, clang), so the work is
    in processes and none is left behind when this one is killed.
    """
    if scheduler:
        try:
            from distributed import Client
        except ImportError:
            raise InputError("--scheduler needs Dask: pip install distributed") from None
        try:
            client = Client(scheduler, timeout=10)
        except (OSError, TimeoutError, ValueError) as error:
            raise InputError(
                f"--scheduler {scheduler}: no Dask scheduler answers ({error})"
            ) from None
        with client:
            yield client.get_executor()
        return
    executor = ThreadPoolExecutor(count or os.cpu_count())
    try:
        yield executor
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
