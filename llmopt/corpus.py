"""The corpus: functions of other people's programs as unoptimised, normalised IR (paper, III-B).

`build` takes the projects of the manifest that a scale uses through fetching, compiling, splitting
into functions and removing duplicates to one table, split by project; `read_directory` does the
same for a user's own code. Long work is journalled per source file, and the bytes of the result do
not depend on the number of workers nor on where a run was cut off.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmopt import config, extract, frontend, ir, journal, llvm, sources
from llmopt.config import InputError

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = (
    *("id", "name", "project", "suite", "split", "file", "language", "ir"),
    *("unoptimised", "structural_hash"),
)
MAX_BYTES = 50 << 20  # of one file of a user's
CLAIMS = ("test", "valid", "train")  # who keeps a function that several splits have
Progress = Callable[[int, int, str], None]  # done, total, what


# --- the corpus of a scale ---------------------------------------------------------------------


def build(
    scale: config.Scale,
    directory: Path,
    executor: Executor | None = None,
    progress: Progress | None = None,
    manifest: Path = sources.MANIFEST,
    compiled: Path | None = None,
) -> Path:
    """Make `functions.parquet` and `report.json` in `directory`; returns the directory.

    Rows are ordered by split and then by id, so a prefix of a split is a uniform sample of it.
    Sources that cannot be had now are named in the report under `missing` and the build goes on
    with the others; `InputError` where none is left. Without `executor`, every core is used. What
    was compiled is kept in the journal `compiled` (default: in `directory`); corpora may share it.
    """
    tell = progress or (lambda done, total, what: None)
    chosen = [s for s in sources.manifest(manifest) if scale.name in s.scales]
    roots: dict[str, Path] = {}
    missing = []
    for number, source in enumerate(chosen):
        tell(number, len(chosen), f"fetching {source.name}")
        try:
            roots[source.name] = sources.obtain(source)
        except sources.MissingSourceError as error:
            missing.append({"project": source.name, "reason": str(error)})
    if not roots:
        first = missing[0]["reason"] if missing else f"no source names it in {manifest}"
        raise InputError(f"scale {scale.name}: no source to build the corpus from: {first}")
    items: dict[str, tuple[sources.Source, extract.Task]] = {}
    for source in chosen:
        root = roots.get(source.name)
        for file in source.list_files(root) if root else ():
            options = (source.includes, source.defines, source.flags, scale.max_chars)
            key = f"{source.name}/{file}:{_digest(source, scale)}"
            items[key] = (source, extract.Task(str(root), file, *options))
    directory.mkdir(parents=True, exist_ok=True)
    with journal.Journal(compiled or directory / "journal.sqlite") as done, ExitStack() as stack:
        pool = executor or stack.enter_context(journal.workers())
        finished = len(items.keys() & done.keys())

        def report(key: str, value: dict) -> None:
            nonlocal finished
            finished += 1
            tell(finished, len(items), key.rpartition(":")[0])

        tasks = {key: task for key, (_, task) in items.items()}
        journal.run(done, extract.read_file, tasks, pool, report)
        found = {key: done.get(key) for key in items}
    rows, projects = _select(scale, items, found)
    _write(directory, scale, rows, projects, missing)
    return directory


def _digest(source: sources.Source, scale: config.Scale) -> str:
    """What, the file aside, decides what comes out of it."""
    code = config.fingerprint("extract")
    parts = (source, scale.max_chars, frontend.available()[1], llvm.version(), code)
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


def _select(scale: config.Scale, items: dict, found: dict) -> tuple[list[dict], list[dict]]:
    """Rows to keep, and per project what became of the rest.

    A function belongs to the first that claims its structural hash. The test split claims first,
    so that removing near-duplicates makes training poorer, never the measurement.
    """
    by_project: dict[sources.Source, list[tuple[str, dict]]] = {}
    for key, (source, task) in items.items():
        by_project.setdefault(source, []).append((task.file, found[key]))
    ids: dict[str, str] = {}  # id -> split
    structures: dict[str, str] = {}  # structural hash -> split
    rows: list[dict] = []
    reports = {}
    for source in sorted(by_project, key=lambda source: CLAIMS.index(source.split)):
        counts: Counter[str] = Counter()
        failed: dict[str, list[str]] = {}
        rejected: Counter[str] = Counter()
        kept: list[dict] = []
        for file, value in by_project[source]:
            counts["headers"] += value["headers"]
            counts["too_long"] += value["too_long"]
            counts["functions"] += value["too_long"]
            if value["error"]:
                failed.setdefault(_reason(value["error"]), []).append(file)
            for reason, names in value["rejected"].items():
                rejected[reason] += len(names)
            for row in _rows(value, source, file):
                fate = _fate(row, ids, structures)
                counts["functions"] += 1
                counts[fate] += 1
                if fate == "kept":
                    kept.append(row)
                    ids[row["id"]] = structures[row["structural_hash"]] = row["split"]
        kept.sort(key=lambda row: row["id"])  # a cap by id is a uniform sample, and stable
        rows += kept[: scale.max_functions_per_project]
        files = len(by_project[source])
        broken = sum(map(len, failed.values()))
        reports[source.name] = {
            "project": source.name,
            "version": source.version,
            "suite": source.suite,
            "split": source.split,
            "licence": source.licence,
            "files": files,
            "compiled": files - broken,
            "failed": failed,
            "functions": counts["functions"],
            "from_headers": counts["headers"],
            "refused_by_llvm": dict(sorted(rejected.items())),
            "too_long": counts["too_long"],
            "duplicates": {
                f"{kind}_{where}": counts[f"{kind}_{where}"]
                for kind in ("exact", "structural")
                for where in ("within", "across")
            },
            "over_cap": max(0, len(kept) - scale.max_functions_per_project),
            "kept": min(len(kept), scale.max_functions_per_project),
        }
    rows.sort(key=lambda row: (sources.SPLITS.index(row["split"]), row["id"]))
    return rows, [reports[source.name] for source in by_project]


def _rows(value: dict, source: sources.Source, file: str) -> Iterator[dict]:
    language = frontend.LANGUAGES.get(Path(file).suffix.lower(), "llvm")
    for name, text, count in value["functions"]:
        yield {
            "id": ir.function_id(text),
            "name": name,
            "project": source.name,
            "suite": source.suite,
            "split": source.split,
            "file": file,
            "language": language,
            "ir": text,
            "unoptimised": count,
            "structural_hash": ir.structural_hash(text),
        }


def _fate(row: dict, ids: dict[str, str], structures: dict[str, str]) -> str:
    """`kept`, or the kind of duplicate: of whom."""
    owner = structures.get(row["structural_hash"])
    if owner is None:
        return "kept"
    kind = "exact" if row["id"] in ids else "structural"
    return f"{kind}_{'within' if owner == row['split'] else 'across'}"


def _reason(error: str) -> str:
    """The compiler's message without the place: what failures are grouped by."""
    return re.sub(r"^\S+?(:\d+)?: ", "", error)


def _write(
    directory: Path,
    scale: config.Scale,
    rows: list[dict],
    projects: list[dict],
    missing: list[dict],
) -> None:
    import io
    import json

    import pyarrow as pa
    from pyarrow import parquet

    kinds = {"unoptimised": pa.int32()}
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in COLUMNS])
    buffer = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, schema), buffer, compression="zstd")
    report = {
        "scale": scale.name,
        "clang": frontend.available()[1],
        "llvm": llvm.version(),
        "functions": {split: sum(r["split"] == split for r in rows) for split in sources.SPLITS},
        "projects": projects,
        "missing": missing,
    }
    config.write_atomic(directory / "functions.parquet", buffer.getvalue())
    config.write_atomic(directory / "report.json", (json.dumps(report, indent=1) + "\n").encode())


# --- a user's own code -------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What `read_directory` found: `functions` (columns as in the corpus, one row a definition) and
    `problems`, one (file, reason with line) for each file that gave no function."""

    functions: pd.DataFrame
    problems: tuple[tuple[str, str], ...]


def read_directory(
    path: Path | str,
    includes: Sequence[str] = (),
    defines: Sequence[str] = (),
    progress: Progress | None = None,
) -> Reading:
    """The functions of a folder of .c .cc .cpp .cxx .ll .bc files, or of one such file.

    A file that cannot be read is a problem and the others go on. `InputError` where nothing at all
    can be read: no such path, no such files, or problems only.
    """
    import pandas as pd

    path = Path(path)
    kinds = (*frontend.LANGUAGES, ".ll", ".bc")
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; check the path")
    if path.is_file() and path.suffix.lower() not in kinds:
        raise InputError(f"{path}: unknown kind of file; use one of {' '.join(kinds)}")
    root = path if path.is_dir() else path.parent
    found = root.rglob("*") if path.is_dir() else [path]
    files = sorted(
        file.relative_to(root).as_posix()
        for file in found
        if file.suffix.lower() in kinds
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(root).parts[:-1])
    )
    if not files:
        raise InputError(f"{path}: no source files below it; it needs one of {' '.join(kinds)}")
    name = root.resolve().name
    local = sources.Source(
        name=name, licence="", about="", suite="local", split="test", files=(), scales=()
    )
    # The folders in which a project's headers usually lie.
    usual = tuple(folder for folder in (".", "include") if (root / folder).is_dir())
    rows: list[dict] = []
    problems: list[tuple[str, str]] = []

    def read(file: str) -> dict:
        reason = _unfit(root / file)
        if reason:
            return {"error": f"{file}: {reason}"}
        return extract.read_file(extract.Task(str(root), file, (*includes, *usual), tuple(defines)))

    with journal.workers() as pool:
        for number, (file, value) in enumerate(zip(files, pool.map(read, files), strict=True)):
            if progress:
                progress(number + 1, len(files), file)
            if not value["error"] and value["functions"]:
                rows += _rows(value, local, file)
            problems += [(file, reason) for reason in _problems(file, value)]
    if not rows:
        more = f" (and {len(problems) - 1} more files)" if len(problems) > 1 else ""
        raise InputError(f"{path}: no function to read: {problems[0][1]}{more}")
    return Reading(pd.DataFrame(rows, columns=list(COLUMNS)), tuple(problems))


def _unfit(path: Path) -> str | None:
    """Why a file is not even given to the compiler."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if size == 0:
        return "empty file"
    if size > MAX_BYTES:
        return f"{size >> 20} MiB, the limit is {MAX_BYTES >> 20} MiB; split the file"
    if path.suffix.lower() != ".bc" and b"\0" in head:
        return "binary data, not source text"
    return None


def _problems(file: str, value: dict) -> Iterator[str]:
    if value["error"]:
        yield value["error"]
        return
    for reason, names in value["rejected"].items():
        yield f"{file}: LLVM refuses {', '.join(names[:3])}: {reason}"
    if not value["functions"] and not value["rejected"]:
        inline = " but inline ones" if value["headers"] else ""
        yield f"{file}: defines no functions{inline}, only declarations"
