"""Sources that are no archive: Csmith's programs and git repositories at a commit."""

import dataclasses
import shutil
import subprocess

import pytest

from llmopt import config, corpus, sources
from llmopt.config import InputError

CSMITH = next(source for source in sources.manifest() if source.seeds)


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path / "home"))


def git(folder, *arguments):
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    done = subprocess.run(
        ["git", "-C", folder, *identity, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    """A repository with two commits; `twice` is only in the second."""
    folder = tmp_path / "upstream"
    folder.mkdir()
    git(folder, "init", "-q")
    hashes = []
    for name in ("once", "twice"):
        (folder / f"{name}.c").write_text(f"int {name}(int x) {{ return x * {len(name)}; }}\n")
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", name)
        hashes.append(git(folder, "rev-parse", "HEAD"))
    return f"file://{folder}", hashes


def test_a_git_repository_is_read_at_the_commit_asked_for(repository):
    url, hashes = repository
    names = [set(corpus.read_directory(sources.checkout(url, h)).functions.name) for h in hashes]
    assert names == [{"once"}, {"once", "twice"}]


def test_a_commit_is_fetched_once(repository, monkeypatch):
    url, hashes = repository
    folder = sources.checkout(url, hashes[0])
    assert sources.checkout("file:///gone", hashes[0]) == folder


@pytest.mark.parametrize(
    ("url", "commit", "said"),
    [
        (None, "main", "--commit main: give the full hash"),
        (None, "0" * 40, "at 000000000000: "),
        ("file:///no/such/repository", "1" * 40, "file:///no/such/repository at 111111111111: "),
    ],
)
def test_what_git_cannot_give_is_one_line(repository, url, commit, said):
    with pytest.raises(InputError, match=said) as error:
        sources.checkout(url or repository[0], commit)
    assert "\n" not in str(error.value)
    assert not list((config.home() / "sources").glob(".clone-*"))


needs_csmith = pytest.mark.skipif(
    not shutil.which("csmith"), reason="needs Csmith (apt-get install csmith libcsmith-dev)"
)


@needs_csmith
def test_csmith_programs_are_those_of_their_seeds(tmp_path, monkeypatch):
    some = dataclasses.replace(CSMITH, seeds=(5, 7))
    monkeypatch.chdir(tmp_path)
    folder = sources.obtain(some)
    assert some.list_files(folder) == ["5.c", "6.c", "7.c"]
    texts = [(folder / f"{seed}.c").read_text() for seed in (5, 6, 7)]
    assert len(set(texts)) == 3
    monkeypatch.setenv("LLMOPT_HOME", str(tmp_path / "other"))
    again = sources.obtain(some)
    assert [(again / f"{seed}.c").read_text() for seed in (5, 6, 7)] == texts
    assert not (tmp_path / "platform.info").exists()  # Csmith would leave it where one works


@needs_csmith
def test_csmith_programs_compile_to_functions(tmp_path):
    path = tmp_path / "sources.toml"
    path.write_text(
        '[[source]]\nname = "csmith"\nversion = "2.3.0"\nlicence = "BSD-2-Clause"\nabout = ""\n'
        'suite = "synthetic"\nsplit = "train"\nseeds = [1, 2]\nfiles = ["*.c"]\n'
        'includes = ["runtime"]\nscales = ["smoke"]\n'
        'arguments = ["--max-funcs", "5", "--max-block-size", "2", "--max-block-depth", "2"]\n'
    )
    out = corpus.build(config.scale("smoke"), tmp_path / "out", manifest=path)
    import pandas as pd

    rows = pd.read_parquet(out / "functions.parquet")
    assert len(rows) >= 2 and set(rows.suite) == {"synthetic"}
    assert not any("safe_add" in name for name in rows.name)  # Csmith's own headers


def test_without_csmith_the_source_is_missing_and_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(sources.MissingSourceError, match="no csmith here; install it"):
        sources.obtain(CSMITH)


def test_another_csmith_is_not_taken(tmp_path, monkeypatch):
    fake = tmp_path / "bin" / "csmith"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho csmith 1.0.0\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:/usr/bin:/bin")
    with pytest.raises(sources.MissingSourceError, match="differ from those of the pinned 2.3.0"):
        sources.obtain(CSMITH)
