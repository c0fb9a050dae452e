import sqlite3
import threading
from contextlib import closing

import pytest

from llmopt import journal
from llmopt.config import InputError


def double(number):
    return {"value": 2 * number}


def test_runs_what_is_missing_and_nothing_else(tmp_path):
    items = {f"k{i:02}": i for i in range(40)}
    seen = []
    with journal.Journal(tmp_path / "j.sqlite") as done, journal.workers(2) as pool:
        done.put("k05", {"value": "kept"})
        journal.run(done, double, items, pool, lambda key, value: seen.append(key))
        assert sorted([*seen, "k05"]) == sorted(items)
        found = dict(done.items())
    assert found["k05"] == {"value": "kept"} and found["k07"] == {"value": 14}
    assert list(found) == sorted(items)


def test_texts_are_asked_about_in_whole_chunks_of_like_lengths(tmp_path):
    texts = {f"k{i:03}": "x" * (i * 7 % 80) for i in range(80)}
    order = sorted(texts, key=lambda key: len(texts[key]))
    calls = []

    def load():
        def values(some):
            calls.append(some)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return [{"value": len(text)} for text in some]

        return values

    told = []
    with journal.Journal(tmp_path / "j.sqlite") as done:
        with pytest.raises(KeyboardInterrupt):
            journal.ask(done, load, texts, told.append)
        assert done.keys() == set(order[: journal.CHUNK])
        journal.ask(done, load, texts, told.append)
        assert all(done.get(key) == {"value": len(text)} for key, text in texts.items())
        journal.ask(done, None, texts)  # nothing is missing, so nothing is loaded
    first, second, again, third = calls
    assert first == [texts[key] for key in order[: journal.CHUNK]] and again == second
    assert told == [len(first), len(again), len(third)] == [32, 32, 16]


@pytest.mark.parametrize("workers", [None, 2])
def test_what_was_finished_before_a_failure_is_kept(tmp_path, workers):
    def fails_at_30(number):
        if number == 30:
            raise KeyboardInterrupt
        return {"value": number}

    items = {f"k{i:02}": i for i in range(60)}
    path = tmp_path / "j.sqlite"
    with pytest.raises(KeyboardInterrupt):
        with journal.Journal(path) as done:
            if workers:
                with journal.workers(workers) as pool:
                    journal.run(done, fails_at_30, items, pool)
            else:
                journal.run(done, fails_at_30, items)
    with journal.Journal(path) as done:
        kept = dict(done.items())
        assert len(kept) >= 29 and "k30" not in kept
        journal.run(done, double, items)
        assert done.keys() == set(items)
        assert done.get("k00") == {"value": 0}


def test_another_connection_sees_a_result_before_it_is_reported(tmp_path):
    path = tmp_path / "j.sqlite"
    on_disk = []

    def reported(key, value):
        with closing(sqlite3.connect(path)) as other:
            on_disk.append(other.execute("select 1 from done where key = ?", (key,)).fetchone())

    with journal.Journal(path) as done:
        journal.run(done, double, {"a": 1, "b": 2}, None, reported)
    assert on_disk == [(1,), (1,)]


def test_a_foreign_file_is_refused_by_name(tmp_path):
    path = tmp_path / "j.sqlite"
    path.write_bytes(b"this is no database" * 99)
    with pytest.raises(InputError, match="j.sqlite: not a usable journal"):
        journal.Journal(path)


def test_a_full_disk_is_one_clear_error_and_keeps_the_rest(tmp_path):
    path = tmp_path / "j.sqlite"
    with journal.Journal(path) as done:
        done.put("small", {"value": 1})
        done._db.execute("pragma max_page_count = 4")  # SQLite's own "disk is full"
        with pytest.raises(InputError, match="full.*what was recorded is kept"):
            done.put("large", {"value": "x" * 100_000})
    with journal.Journal(path) as done:
        assert done.get("small") == {"value": 1} and done.get("large") is None


def test_no_dask_scheduler_is_one_clear_error():
    with pytest.raises(InputError, match="--scheduler"):
        with journal.workers(scheduler="tcp://127.0.0.1:9"):
            pass


def test_workers_leave_no_thread_behind():
    before = threading.active_count()
    with journal.workers(3) as pool:
        list(pool.map(double, range(10)))
    assert threading.active_count() == before
