"""The corpus: archives refused or fetched again, functions split and told apart, runs resumed."""

import dataclasses
import hashlib
import http.server
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from llmopt import config, corpus, extract, ir, journal, llvm, sources
from llmopt.config import InputError

SUM = "int {name}(const int *v, int n) {{ int s = 0; while (n--) s += v[n] * {k}; return s; }}\n"
OTHER = "int {name}(int x) {{ return x / {k} - (x << {k}); }}\n"


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as pool:
        yield pool


def small(**changes):
    return dataclasses.replace(config.scale("smoke"), **changes)


def local_source(folder, name, split, files):
    """A project of our own as a manifest entry."""
    for file, text in files.items():
        (folder / name / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / name / file).write_text(text)
    return textwrap.dedent(f"""
        [[source]]
        name = "{name}"
        licence = "MIT"
        about = "a test"
        suite = "test"
        split = "{split}"
        path = "{folder / name}"
        files = ["**/*.c", "**/*.cpp"]
        scales = ["smoke"]
    """)


def manifest_of(folder, *entries):
    path = folder / "sources.toml"
    path.write_text("".join(entries))
    return path


def three_projects(folder):
    return manifest_of(
        folder,
        local_source(
            folder,
            "learn",
            "train",
            {
                "a.c": SUM.format(name="alpha", k=3)
                + SUM.format(name="twin", k=3)
                + OTHER.format(name="mine", k=2),
                "same/a.c": SUM.format(name="shared", k=9),
                "bad.c": "int broken(void) { return nothing; }\n",
            },
        ),
        local_source(
            folder,
            "choose",
            "valid",
            {"b.c": OTHER.format(name="valid_only", k=5) + SUM.format(name="taken", k=9)},
        ),
        local_source(
            folder,
            "measure",
            "test",
            {
                "c.c": SUM.format(name="renamed", k=9) + OTHER.format(name="test_only", k=7),
                "d.cpp": "struct S { int f(int); }; int S::f(int x) { return x % 3; }\n",
            },
        ),
    )


def report_of(directory):
    return json.loads((directory / "report.json").read_text())


def test_build_splits_by_project_and_removes_near_duplicates_across_splits(tmp_path, threads):
    out = corpus.build(small(), tmp_path / "out", threads, manifest=three_projects(tmp_path))
    frame = pd.read_parquet(out / "functions.parquet")
    assert tuple(frame.columns) == corpus.COLUMNS
    assert frame.structural_hash.is_unique and frame.id.is_unique
    by_split = {split: set(rows.name) for split, rows in frame.groupby("split")}
    assert by_split == {
        "train": {"alpha", "mine"},  # `twin` is alpha, `shared` is the test split's
        "valid": {"valid_only"},
        "test": {"renamed", "test_only", "_ZN1S1fEi"},
    }
    assert list(frame.split.unique()) == ["train", "valid", "test"]
    for row in frame.itertuples():
        assert row.id == ir.function_id(row.ir) and row.unoptimised == ir.count(row.ir)
        with llvm.Module(row.ir) as module:
            assert module.count() == row.unoptimised
    assert set(frame[frame.file == "d.cpp"].language) == {"c++"}


def test_the_report_says_what_became_of_everything(tmp_path, threads):
    out = corpus.build(small(), tmp_path / "out", threads, manifest=three_projects(tmp_path))
    report = report_of(out)
    learn, choose, measure = report["projects"]
    assert (learn["files"], learn["compiled"]) == (3, 2)
    assert learn["failed"] == {"use of undeclared identifier 'nothing'": ["bad.c"]}
    assert learn["duplicates"]["structural_within"] == 1
    assert learn["duplicates"]["structural_across"] == 1
    assert choose["duplicates"]["structural_across"] == 1
    for project in report["projects"]:
        gone = sum(project["duplicates"].values()) + project["too_long"] + project["over_cap"]
        assert project["functions"] == project["kept"] + gone
    assert report["functions"] == {"train": 2, "valid": 1, "test": 3}
    assert measure["failed"] == {} and report["missing"] == []


def test_an_exact_duplicate_is_told_from_a_near_one(tmp_path, threads):
    manifest = manifest_of(
        tmp_path,
        local_source(tmp_path, "learn", "train", {"a.c": SUM.format(name="f", k=3)}),
        local_source(tmp_path, "measure", "test", {"b.c": SUM.format(name="f", k=3)}),
    )
    report = report_of(corpus.build(small(), tmp_path / "out", threads, manifest=manifest))
    assert report["projects"][0]["duplicates"]["exact_across"] == 1
    assert report["functions"] == {"train": 0, "valid": 0, "test": 1}


def test_long_functions_and_those_over_the_cap_are_counted(tmp_path, threads):
    text = "".join(OTHER.format(name=f"f{k}", k=k) for k in range(1, 9))
    manifest = manifest_of(tmp_path, local_source(tmp_path, "measure", "test", {"a.c": text}))
    capped = small(max_functions_per_project=3)
    out = corpus.build(capped, tmp_path / "out", threads, manifest=manifest)
    assert (report_of(out)["projects"][0]["kept"], report_of(out)["projects"][0]["over_cap"]) == (
        3,
        5,
    )
    out = corpus.build(small(max_chars=50), tmp_path / "long", threads, manifest=manifest)
    assert report_of(out)["projects"][0]["too_long"] == 8


def test_same_bytes_whatever_the_workers(tmp_path, threads):
    manifest = three_projects(tmp_path)
    one = corpus.build(small(), tmp_path / "one", threads, manifest=manifest)
    two = corpus.build(small(), tmp_path / "two", None, manifest=manifest)
    for name in ("functions.parquet", "report.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


BUILD = """
import sys, dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from llmopt import config, corpus
with ThreadPoolExecutor(1) as pool:
    corpus.build(config.scale("smoke"), Path(sys.argv[1]), pool, manifest=Path(sys.argv[2]))
"""


def test_a_killed_build_goes_on_and_ends_in_the_same_bytes(tmp_path, threads):
    files = {f"f{k}.c": OTHER.format(name=f"f{k}", k=k) for k in range(1, 25)}
    manifest = manifest_of(tmp_path, local_source(tmp_path, "measure", "test", files))
    whole = corpus.build(small(), tmp_path / "whole", threads, manifest=manifest)
    cut = tmp_path / "cut"
    child = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(cut), str(manifest)], start_new_session=True
    )
    deadline = time.monotonic() + 60
    kept = 0
    while kept < 5 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
        if (cut / "journal.sqlite").exists():
            with journal.Journal(cut / "journal.sqlite") as done:
                kept = len(done.keys())
    os.killpg(child.pid, signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL and 5 <= kept < 24
    told = []
    corpus.build(small(), cut, threads, lambda *args: told.append(args), manifest=manifest)
    compiled = [done for done, total, what in told if what.startswith("measure/")]
    assert min(compiled) > kept - 1 and len(compiled) <= 24 - kept
    for name in ("functions.parquet", "report.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


# --- archives ----------------------------------------------------------------------------------


def archive_bytes(name="tiny-1.0"):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        data = SUM.format(name="f", k=2).encode()
        entry = tarfile.TarInfo(f"{name}/src/a.c")
        entry.size = len(data)
        tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A package index on this machine that has one archive, counting the downloads."""
    data = archive_bytes()
    page = b'<!DOCTYPE html><html><body><a href="/files/tiny-1.0.tar.gz">tiny-1.0.tar.gz</a></html>'

    class Handler(http.server.BaseHTTPRequestHandler):
        downloads = 0

        def do_GET(self):  # noqa: N802 - the name is the library's
            file = self.path.startswith("/files/")
            known = file or self.path == "/simple/tiny/"
            Handler.downloads += file
            self.send_response(200 if known else 404)
            self.send_header("Content-Type", "application/gzip" if file else "text/html")
            self.end_headers()
            self.wfile.write(data if file else page)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple/")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        try:
            yield Handler, hashlib.sha256(data).hexdigest()
        finally:
            server.shutdown()
            thread.join()


def entry(sha256, name="tiny", headers=""):
    return (
        textwrap.dedent(f"""
        [[source]]
        name = "{name}"
        version = "1.0"
        sha256 = "{sha256}"
        licence = "MIT"
        about = "a test"
        suite = "test"
        split = "test"
        root = "{name}-1.0/src"
        files = ["*.c"]
        scales = ["smoke"]
    """)
        + headers
    )


def test_an_archive_is_fetched_once_and_unpacked(tmp_path, index):
    handler, sha256 = index
    path = manifest_of(tmp_path, entry(sha256, headers='headers = { "config.h" = "#define A 1" }'))
    (source,) = sources.manifest(path)
    root = sources.obtain(source)
    assert source.list_files(root) == ["a.c"]
    assert (root / "config.h").read_text() == "#define A 1"
    assert sources.obtain(source) == root and handler.downloads == 1


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"x" + data[1:]])
def test_a_damaged_download_is_fetched_again(tmp_path, index, damage):
    handler, sha256 = index
    (source,) = sources.manifest(manifest_of(tmp_path, entry(sha256)))
    path = sources.fetch(source)
    path.write_bytes(damage(path.read_bytes()))
    assert sources.fetch(source) == path and handler.downloads == 2
    assert hashlib.sha256(path.read_bytes()).hexdigest() == sha256


def test_an_archive_that_differs_from_its_pin_is_refused_by_name(tmp_path, index):
    (source,) = sources.manifest(manifest_of(tmp_path, entry("0" * 64)))
    with pytest.raises(InputError, match="tiny 1.0: refused.*tiny-1.0.tar.gz.*pins 0000") as caught:
        sources.obtain(source)
    assert not isinstance(caught.value, sources.MissingSourceError)
    assert not list((tmp_path / "home" / "downloads").iterdir())
    with pytest.raises(InputError, match="refused"):
        corpus.build(small(), tmp_path / "out", manifest=tmp_path / "sources.toml")


def test_a_project_that_the_index_does_not_have_is_missing(tmp_path, index):
    (source,) = sources.manifest(manifest_of(tmp_path, entry("0" * 64, name="absent")))
    with pytest.raises(sources.MissingSourceError, match="absent 1.0.*on none of the"):
        sources.obtain(source)


def test_without_network_the_build_names_what_is_missing_and_goes_on(
    tmp_path, monkeypatch, threads
):
    monkeypatch.setenv("PIP_INDEX_URL", "http://user:secret@127.0.0.1:9/simple/")
    there = local_source(tmp_path, "learn", "train", {"a.c": SUM.format(name="f", k=3)})
    path = manifest_of(tmp_path, entry("0" * 64), there)
    report = report_of(corpus.build(small(), tmp_path / "out", threads, manifest=path))
    assert report["functions"]["train"] == 1
    (missing,) = report["missing"]
    assert missing["project"] == "tiny" and "tiny-1.0.tar.gz" in missing["reason"]
    assert "secret" not in missing["reason"] and "127.0.0.1" not in missing["reason"]
    alone = manifest_of(tmp_path, entry("0" * 64))
    with pytest.raises(InputError, match="no source to build the corpus from: tiny 1.0"):
        corpus.build(small(), tmp_path / "none", threads, manifest=alone)


@pytest.mark.network
def test_a_real_archive_gives_functions(tmp_path, threads):
    wanted = next(s for s in sources.manifest() if s.name == "hiredis")
    try:
        sources.obtain(wanted)
    except sources.MissingSourceError as error:
        pytest.skip(f"the package index cannot be reached: {error}")
    value = extract.read_file(extract.Task(str(sources.obtain(wanted)), "sds.c"))
    assert value["error"] is None and len(value["functions"]) > 30 and not value["rejected"]


# --- the manifest ------------------------------------------------------------------------------


def test_the_manifest_is_sound():
    listed = sources.manifest()
    at = {
        scale: [s for s in listed if scale in s.scales]
        for scale in ("smoke", "classroom", "reference", "paper")
    }
    assert len(at["classroom"]) >= 8 and set(at["classroom"]) <= set(at["reference"])
    for scale, chosen in at.items():
        assert {s.split for s in chosen} == set(sources.SPLITS), scale
    assert all(re.fullmatch("[0-9a-f]{64}", s.sha256) or s.seeds for s in listed)
    archives = [s for s in at["reference"] if s.sha256]
    assert len(archives) >= 60
    assert sum(s.split == "test" for s in archives) >= 8
    assert {s.split for s in at["reference"] if s.seeds} == {"train", "test"}
    assert sum("cpp" in str(s.files) or "*.cc" in str(s.files) for s in at["classroom"]) >= 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("split", "splt"), r"unknown key 'splt' \(did you mean 'split'"),
        (('"test"\nroot', '"tests"\nroot'), "split 'tests'; use one of train"),
        (("sha256", "# sha256"), "give version, root and sha256"),
        (("[[source]]", "[[source]"), "not a manifest"),
        (('licence = "MIT"', ""), "licence"),
    ],
)
def test_a_bad_manifest_is_refused_with_the_reason(tmp_path, change, said):
    path = manifest_of(tmp_path, entry("0" * 64).replace(*change))
    with pytest.raises(InputError, match=said):
        sources.manifest(path)


def test_a_project_in_two_splits_is_refused(tmp_path):
    path = manifest_of(tmp_path, entry("0" * 64), entry("1" * 64))
    with pytest.raises(InputError, match="tiny is there twice"):
        sources.manifest(path)


# --- a user's own code -------------------------------------------------------------------------


def test_a_folder_is_read_file_by_file_and_bad_ones_are_problems(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "good.c").write_text(SUM.format(name="good", k=3))
    (tmp_path / "sub" / "more.cpp").write_text("int more(int x) { return x * x; }\n")
    (tmp_path / "named.ll").write_text(
        "define i32 @named(i32 %x) {\nentry:\n  %y = add i32 %x, 1\n  ret i32 %y\n}\n"
    )
    (tmp_path / "bad.c").write_text("int f(void) {\n  return 1 +;\n}\n")
    (tmp_path / "bad.ll").write_text("define i32 @f() {\n  ret i64 0\n}\n")
    (tmp_path / "empty.c").write_text("")
    (tmp_path / "declares.c").write_text("int f(int);\nextern int x;\n")
    (tmp_path / "garbage.c").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "garbage.bc").write_bytes(b"BC\xc0\xde" + bytes(range(64)))
    (tmp_path / "notes.txt").write_text("no source")
    reading = corpus.read_directory(tmp_path)
    assert set(reading.functions.name) == {"good", "_Z4morei", "named"}
    assert set(reading.functions.language) == {"c", "c++", "llvm"}
    assert tuple(reading.functions.columns) == corpus.COLUMNS
    named = reading.functions.set_index("name").ir["named"]
    assert "%y" not in named and "add i32 %0, 1" in named
    problems = dict(reading.problems)
    assert set(problems) == {
        *("bad.c", "bad.ll", "empty.c", "declares.c", "garbage.c", "garbage.bc")
    }
    assert problems["bad.c"].startswith("bad.c:2: expected expression")
    assert problems["bad.ll"].startswith("bad.ll:2: ")
    assert "empty" in problems["empty.c"] and "declarations" in problems["declares.c"]
    assert "binary" in problems["garbage.c"]
    assert all("\n" not in reason for reason in problems.values())


def test_bitcode_is_read(tmp_path):
    import llvmlite.binding as binding

    text = "define i32 @f(i32 %x) {\n  %y = mul i32 %x, 5\n  ret i32 %y\n}\n"
    (tmp_path / "f.bc").write_bytes(binding.parse_assembly(text).as_bitcode())
    (tmp_path / "f.ll").write_text(text)
    from_bitcode = corpus.read_directory(tmp_path / "f.bc").functions
    from_text = corpus.read_directory(tmp_path / "f.ll").functions
    assert list(from_bitcode.id) == list(from_text.id)


def test_one_file_with_a_header_beside_it(tmp_path):
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "h.h").write_text("static inline int one(void) { return 1; }\n")
    (tmp_path / "f.c").write_text("#include <h.h>\nint f(void) { return one(); }\n")
    reading = corpus.read_directory(tmp_path / "f.c")
    assert list(reading.functions.name) == ["f"] and reading.problems == ()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: p / "nowhere", "no such file or folder"),
        (lambda p: p, "no source files below it"),
        (lambda p: p / "f.rs", "unknown kind of file"),
        (lambda p: p / "empty.c", "empty file"),
        (lambda p: p / "declares.c", "defines no functions, only declarations"),
        (lambda p: p / "bad.c", "bad.c:1: unknown type name"),
        (lambda p: p / "huge.c", "60 MiB, the limit is 50 MiB"),
        (lambda p: p / "text.bc", "not LLVM bitcode"),
    ],
)
def test_unusable_input_is_one_clear_line(tmp_path, make, said):
    path = make(tmp_path)
    texts = {
        "f.rs": "fn",
        "empty.c": "",
        "declares.c": "int f(int);\n",
        "text.bc": "text",
        "bad.c": "nonsense f;\n",
    }
    if path.name in texts:
        path.write_text(texts[path.name])
    elif path.name == "huge.c":
        with path.open("wb") as file:
            file.truncate(60 << 20)  # sparse: takes no room
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        corpus.read_directory(path)
    assert "\n" not in str(caught.value)
