"""The manifest of the corpus, and its sources: fetched, checked against our pins, unpacked.

An archive is a source distribution of the Python package index that bundles plain C or C++. It is
only ever read: nothing in it is built or run. Where it comes from is the environment's business
(pip's own settings are honoured); what it must be is the manifest's (`data/sources.toml`).
Synthetic programs come from Csmith, where it is installed; a user's own code from git (`checkout`).
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path, PurePosixPath

from llmopt import config
from llmopt.config import InputError

MANIFEST = config.ROOT / "data" / "sources.toml"
SPLITS = ("train", "valid", "test")
SECONDS = 60  # without an answer from the index


class MissingSourceError(InputError):
    """A source that is neither on disk nor to be had now; the others can still be used."""


@dataclass(frozen=True)
class Source:
    """One project: where its code comes from, which files count, how clang is called on them.

    `root` is the folder of the archive (or, with `path`, of this repository) from which clang runs;
    `files`, `exclude` (globs) and `includes` are relative to it. `headers` are small files of ours,
    by name, in place of what a configure script would write. With `seeds`, first and last, the
    source is one Csmith program a seed instead of an archive, made with `arguments`.
    """

    name: str
    licence: str
    about: str
    suite: str
    split: str
    files: tuple[str, ...]
    scales: tuple[str, ...]
    version: str = ""
    sha256: str = ""
    root: str = ""
    path: str = ""
    exclude: tuple[str, ...] = ()
    includes: tuple[str, ...] = ()
    defines: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    headers: dict[str, str] = field(default_factory=dict, hash=False)
    seeds: tuple[int, ...] = ()
    arguments: tuple[str, ...] = ()

    @property
    def archive(self) -> str:
        """The archive's file name."""
        return f"{self.root.split('/')[0]}.tar.gz"

    def list_files(self, folder: Path) -> list[str]:
        """The project's source files below its root, sorted."""

        def matching(globs: tuple[str, ...]) -> set[str]:
            return {p.relative_to(folder).as_posix() for glob in globs for p in folder.glob(glob)}

        return sorted(matching(self.files) - matching(self.exclude))


def manifest(path: Path = MANIFEST) -> tuple[Source, ...]:
    """Every source of the manifest, in its order. `InputError` names a bad entry and its key."""
    try:
        entries = tomllib.loads(path.read_text())["source"]
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not a manifest of sources ({error})") from None
    sources = tuple(_source(path, entry) for entry in entries)
    names = [source.name for source in sources]
    for name in {name for name in names if names.count(name) > 1}:
        raise InputError(f"{path}: {name} is there twice; a project belongs to one split")
    return sources


def _source(path: Path, entry: dict) -> Source:
    name = entry.get("name", "a source without name")
    known = {f.name for f in fields(Source)}
    for key in sorted(set(entry) - known):
        raise InputError(f"{path}: {name}: unknown key {key!r}{config.nearest(key, known)}")
    try:
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}
        source = Source(**values)
    except TypeError as error:
        raise InputError(f"{path}: {name}: {str(error).partition('() ')[2]}") from None
    if source.split not in SPLITS:
        raise InputError(f"{path}: {name}: split {source.split!r}; use one of {', '.join(SPLITS)}")
    pinned = source.version and source.root and re.fullmatch(r"[0-9a-f]{64}", source.sha256)
    if source.seeds and (len(source.seeds) != 2 or not source.version):
        raise InputError(f"{path}: {name}: give `version` of Csmith and `seeds`, first and last")
    if not (source.path or pinned or source.seeds):
        raise InputError(f"{path}: {name}: give version, root and sha256 of the archive, or a path")
    return source


def obtain(source: Source) -> Path:
    """The folder from which clang runs on this source, fetched and unpacked where need be.

    Raises `MissingSourceError` where it is not on disk and cannot be fetched now, `InputError`
    where the index gives something else than what the manifest pins.
    """
    if source.path:
        folder = config.ROOT / source.path
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder, named by the source {source.name}")
        return folder
    if source.seeds:
        return _generate(source)
    folder = config.home() / "sources" / source.sha256[:16]
    if not (folder / source.root).is_dir():
        _unpack(fetch(source), folder)
    if not (folder / source.root).is_dir():
        raise InputError(f"{source.archive}: has no folder {source.root}; correct `root`")
    for name, text in source.headers.items():
        target = folder / source.root / name
        if not target.exists() or target.read_text() != text:
            config.write_atomic(target, text.encode())
    return folder / source.root


def _generate(source: Source) -> Path:
    """A folder with one Csmith program a seed, and Csmith's own headers in `runtime`."""
    csmith = shutil.which("csmith")
    mend = "install it (Debian and Ubuntu: apt-get install csmith libcsmith-dev)"
    if csmith is None:
        raise MissingSourceError(f"{source.name}: no csmith here; {mend}")

    def run(*arguments: str) -> str:
        with tempfile.TemporaryDirectory() as scratch:  # Csmith leaves a file where it runs
            return subprocess.run(
                [csmith, *arguments],
                cwd=scratch,
                capture_output=True,
                check=True,
                text=True,
                timeout=600,
            ).stdout

    found = run("--version")
    if source.version not in found.split():
        raise MissingSourceError(
            f"{source.name}: {csmith} is {found.partition(chr(10))[0]}, and its programs differ "
            f"from those of the pinned {source.version}; {mend}"
        )
    include = Path(csmith).resolve().parent.parent / "include"
    headers = [path for path in sorted(include.glob("csmith*")) if (path / "csmith.h").exists()]
    if not headers:
        raise MissingSourceError(f"{source.name}: no csmith.h below {include}; {mend}")
    key = hashlib.sha256(repr((source.version, source.arguments)).encode()).hexdigest()[:16]
    folder = config.home() / "sources" / f"csmith-{key}" / f"{source.seeds[0]}-{source.seeds[1]}"
    shutil.copytree(headers[0], folder / "runtime", dirs_exist_ok=True)

    def generate(seed: int) -> None:
        target = folder / f"{seed}.c"
        if not target.exists():
            program = run("--seed", str(seed), *source.arguments)
            config.write_atomic(target, program.encode())

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(generate, range(source.seeds[0], source.seeds[1] + 1)))
    return folder


def checkout(url: str, commit: str) -> Path:
    """The tree of a git repository at a commit (its full hash), fetched at first use."""
    if not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", commit):
        raise InputError(
            f"--commit {commit}: give the full hash, so that it means one tree for ever"
        )
    git = shutil.which("git")
    if git is None:
        raise InputError(f"{url}: needs git; install it")
    folder = config.home() / "sources" / f"git-{commit[:16]}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".clone-") as temporary:
        tree = Path(temporary) / "tree"

        def run(*arguments: str) -> None:
            done = subprocess.run(
                [git, "-C", str(tree), *arguments],
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                env=os.environ | {"GIT_TERMINAL_PROMPT": "0"},
            )
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["git failed"])[-1]
                raise InputError(f"{url} at {commit[:12]}: {said}; check both, and the connection")

        tree.mkdir()
        run("init", "-q")
        try:
            run("fetch", "-q", "--depth", "1", "--", url, commit)
        except InputError:  # not every server gives out single commits
            run("fetch", "-q", "--", url, "+refs/*:refs/all/*")
        run("-c", "advice.detachedHead=false", "checkout", "-q", commit, "--")
        shutil.rmtree(tree / ".git")
        os.rename(tree, folder)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpack-") as temporary:
        tree = Path(temporary) / "tree"
        with tarfile.open(archive) as tar:
            for member in tar:  # plain files inside only; Python 3.11.2 has no filter="data" yet
                path = PurePosixPath(member.name)
                if member.isfile() and not path.is_absolute() and ".." not in path.parts:
                    (tree / path).parent.mkdir(parents=True, exist_ok=True)
                    with tar.extractfile(member) as source, (tree / path).open("wb") as target:
                        shutil.copyfileobj(source, target)
        try:
            os.rename(tree, folder)  # whole or not at all
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(source: Source) -> Path:
    """The archive on disk, with the sha256 of the manifest; a damaged copy is fetched again."""
    path = config.home() / "downloads" / source.archive
    if path.exists() and _sha256(path) == source.sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".fetch-") as temporary:
        part = Path(temporary) / source.archive
        _download(source, part)
        found = _sha256(part)
        if found != source.sha256:
            raise InputError(
                f"{source.name} {source.version}: refused: the index gave {source.archive} with "
                f"sha256 {found}, data/sources.toml pins {source.sha256}"
            )
        os.replace(part, path)
    return path


def _download(source: Source, target: Path) -> None:
    import requests
    from pypi_simple import (
        PYPI_SIMPLE_ENDPOINT,
        NoSuchProjectError,
        PyPISimple,
        UnsupportedContentTypeError,
        UnsupportedRepoVersionError,
    )

    not_an_index = (UnsupportedContentTypeError, UnsupportedRepoVersionError)
    settings = _pip_settings()
    reason = "it is on none of the configured indexes"
    for endpoint in _endpoints(settings):
        with (
            requests.Session() as session,
            PyPISimple(endpoint or PYPI_SIMPLE_ENDPOINT, session=session) as client,
        ):
            session.verify = settings.get("cert", True)
            try:
                page = client.get_project_page(source.name, timeout=SECONDS)
                for package in page.packages:
                    if package.filename == source.archive:
                        client.download_package(package, target, verify=False, timeout=SECONDS)
                        return
            except NoSuchProjectError:
                continue
            except (requests.RequestException, *not_an_index) as error:
                # The kind only: requests puts the index's address, and so its password, into texts.
                reason = f"no answer from the index ({type(error).__name__})"
    raise MissingSourceError(
        f"{source.name} {source.version}: cannot fetch {source.archive}: {reason}; connect, or put "
        f"the file into {config.home() / 'downloads'}"
    )


@lru_cache
def _pip_config() -> str:
    # Empty where pip is not installed.
    return subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, timeout=60
    ).stdout


def _pip_settings() -> dict[str, str]:
    """Which index pip is set to use here: its files, and over them the environment."""
    settings: dict[str, str] = {}
    for section in ("global", "install", "download"):  # the later, the stronger
        for line in _pip_config().splitlines():
            key, _, value = line.partition("=")
            if key.startswith(f"{section}."):
                settings[key[len(section) + 1 :]] = " ".join(shlex.split(value))
    for name in ("index-url", "extra-index-url", "cert", "no-index"):
        value = os.environ.get(f"PIP_{name.replace('-', '_').upper()}")
        if value is not None:
            settings[name] = value
    return settings


def _endpoints(settings: dict[str, str]) -> list[str]:
    """The indexes to ask in turn; '' is pypi-simple's own default."""
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        return []
    urls = [settings.get("index-url", ""), *settings.get("extra-index-url", "").split()]
    return [url for url in urls if not url or url.startswith(("http://", "https://"))]
