"""The stages in order, each made once for the current scale and kept below `config.home()`.

    functions() -> labels() -> examples() -> tokenizer() -> model()

A stage's folder is named after a key over its code (with all it imports), LLVM's version, its
settings and the stage before it: an edit makes what depends on it again and leaves the rest. A
notebook asks for what it needs; whatever is missing is made then and there, with a progress bar,
and a stage that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from filelock import FileLock
from tqdm.auto import tqdm

from llmopt import (
    baselines,
    config,
    corpus,
    frontend,
    journal,
    llvm,
    naming,
    passes,
    prompt,
    sandbox,
    sources,
)
from llmopt import labels as labelling
from llmopt import tokenizer as tokenizers
from llmopt.config import PROTOCOLS, InputError
from llmopt.prompt import Example

if TYPE_CHECKING:
    from llmopt import dataset

RESULTS = config.ROOT / "results"
WARMUP = 270  # steps of a training run, at most
WEIGHED = 6000  # training functions on which the rule of a model is fitted, and all validation ones
RELEASED = config.ROOT / "models" / "reference"  # the model that comes with the repository


def stage(name: str, modules: tuple[str, ...], settings: object) -> Path:
    """The folder of a stage: what it holds depends on the arguments, our code and LLVM alone."""
    text = f"{config.fingerprint(*modules)}\n{llvm.version()}\n{settings!r}"
    key = hashlib.sha256(text.encode()).hexdigest()[:10]
    return config.home() / config.scale().name / f"{name}-{key}"


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One maker at a time: a second notebook that needs the stage waits and finds it made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        yield


@contextmanager
def _bar(title: str, total: int, unit: str = "function") -> Iterator[tqdm]:
    with tqdm(total=total, desc=title, unit=unit, smoothing=0.05) as bar:
        yield bar


def corpus_folder() -> Path:
    """Where the current scale's corpus is; `report.json` there tells how it came about."""
    scale = config.scale()
    manifest = hashlib.sha256(sources.MANIFEST.read_bytes()).hexdigest()
    clang = frontend.available()[1]
    settings = (scale.name, scale.max_functions_per_project, scale.max_chars, manifest, clang)
    return stage("corpus", ("corpus",), settings)


_TRIED: set[Path] = set()


def functions() -> pd.DataFrame:
    """The corpus: a row a function (`corpus.COLUMNS`), fetched and compiled at first use."""
    folder = corpus_folder()
    report = folder / "report.json"
    # A corpus that lacked a source when it was made is tried again, once a process.
    with alone(folder):
        whole = report.exists() and not json.loads(report.read_text())["missing"]
        if not whole and (folder not in _TRIED or not report.exists()):
            _TRIED.add(folder)
            _build_corpus(folder)
    return pd.read_parquet(folder / "functions.parquet")


def _build_corpus(folder: Path) -> None:
    with journal.workers() as executor, _bar("corpus", 0, "file") as bar:

        def progress(done: int, total: int, what: str) -> None:
            bar.total, bar.n = total, done
            bar.set_postfix_str(what[-40:], refresh=False)
            bar.refresh()

        compiled = config.home() / "compiled.sqlite"  # for every scale, and after most edits
        corpus.build(config.scale(), folder, executor, progress, compiled=compiled)
    for missing in json.loads((folder / "report.json").read_text())["missing"]:
        print(f"llmopt: left out: {missing['reason']}", file=sys.stderr)


def report() -> dict:
    """What became of every source file of the corpus (`corpus.build`)."""
    functions()
    return json.loads((corpus_folder() / "report.json").read_text())


def wanted() -> pd.DataFrame:
    """The functions that the scale trains, validates and evaluates on: all of the train split, the
    first of the others. A split is ordered by id, so its first functions are a uniform sample."""
    rows, scale = functions(), config.scale()
    most = {"train": len(rows), "valid": scale.valid_functions, "test": scale.test_functions}
    return pd.concat([rows[rows.split == split].head(n) for split, n in most.items()])


def released() -> pd.DataFrame:
    """The released labels (`labels.COLUMNS`, two rows a function) with what is known of each
    function: `project suite split language characters` (of its normalised IR)."""
    about = pd.read_parquet(labelling.RELEASED.with_name("functions.parquet"))
    return labelling.read(labelling.RELEASED).merge(about, on="id", validate="many_to_one")


def record(name: str) -> object:
    """A recorded run: `results/NAME.json`."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise InputError(f"{path}: no such record; results/README.md names the command for it")
    return json.loads(path.read_text())


def labels_folder(anew: bool = False) -> Path:
    """Where the current scale's labels are; those of a search of everything, if `anew`."""
    scale = config.scale()
    ids = tuple(wanted().id)  # of what is there: a corpus that lacked a source has other labels
    settings: tuple = (ids, labelling.Budget.of(scale))
    if scale.released_labels and not anew:
        settings += (hashlib.sha256(labelling.RELEASED.read_bytes()).hexdigest(),)
    return stage("labels", ("labels",), settings)


def labels(anew: bool = False) -> pd.DataFrame:
    """The autotuner's labels (`labels.COLUMNS`), two rows a function: those that are released where
    the scale says so and this LLVM made them, the others by a search; all by a search if `anew`."""
    folder = labels_folder(anew)
    with alone(folder):
        if not (folder / "labels.parquet").exists():
            if config.scale().released_labels and not anew:
                _label(folder)
            else:
                search(wanted(), folder)
    return labelling.read(folder / "labels.parquet")


def _label(folder: Path) -> None:
    rows = wanted()
    known = labelling.read(labelling.RELEASED)
    known = known[known.id.isin(rows.id) & (known.llvm == llvm.version())]
    known = known[known.groupby("id").protocol.transform("nunique") == len(PROTOCOLS)]
    rest = rows[~rows.id.isin(known.id)]
    if len(rest):
        projects = ", ".join(sorted(set(rest.project))[:5])
        print(
            f"llmopt: {len(rest)} of {len(rows)} functions are not in the released labels "
            f"(of {projects}): they are searched here",
            file=sys.stderr,
        )
        search(rest, folder, known=labelling.known())
        known = pd.concat([known, labelling.read(folder / "labels.parquet")])
    known = known.sort_values(["id", "protocol"]).reset_index(drop=True)
    labelling.write(known, folder / "labels.parquet")


def coreset() -> dict[str, list[tuple[str, ...]]]:
    """The lists that `labels().coreset` is about, by protocol."""
    own = labels_folder() / "known.json"  # where a search started from other lists
    found = labelling.known(own if own.exists() else labelling.KNOWN)
    return {protocol: list(known.lists[: known.start]) for protocol, known in found.items()}


def search(
    rows: pd.DataFrame,
    folder: Path,
    budget: labelling.Budget | None = None,
    count: int | None = None,
    scheduler: str | None = None,
    known: dict[str, labelling.Known] | None = None,
) -> pd.DataFrame:
    """`labels.label` on all cores (or `count` of them, or a Dask cluster), with a progress bar:
    functions, compilations, gain so far and time left."""
    if known is None and "train" not in set(rows.split):  # there is nothing to make a pilot of
        known = labelling.known()
    seen: set[str] = set()
    spent = oz = best = 0
    budget = budget or labelling.Budget.of(config.scale())
    with (
        journal.workers(count, scheduler) as executor,
        tqdm(total=2 * len(rows), desc="autotune", unit="function", smoothing=0.05) as bar,
    ):

        def on_done(key: str, row: dict) -> None:
            nonlocal spent, oz, best
            spent += row.get("compilations", len(row.get("counts", ())))
            if "best" in row and key not in seen:  # a search; the steps after it are short
                seen.add(key)
                oz, best = oz + row["oz"], best + row["best"]
                bar.update()
            gain = 100 * (oz - best) / max(oz, 1)
            bar.set_postfix_str(f"{spent} compilations, {gain:.2f}% below -Oz", refresh=False)

        return labelling.label(rows, folder, budget, executor, on_done, known)


def release(folder: Path) -> None:
    """Put the labels in `folder` into `data/`, and into `results/` what they cost, what the corpus
    is, and the lists on which LLVM failed, each cut down to what it fails on."""
    rows = functions().set_index("id")
    poison = json.loads((folder / "poison.json").read_text())
    with journal.workers() as executor:
        minimal = labelling.minimise_poison(poison, rows.ir, executor)
    record = {
        "command": f"llmopt autotune --scale {config.scale().name} --release",
        "date": datetime.date.today().isoformat(),
        "llvm": llvm.version(),
        "clang": frontend.available()[1],
        "python": platform.python_version(),
        "machine": {"cores": os.cpu_count(), "processor": processor()},
        "scale": dataclasses.asdict(config.scale()),
        "cost": json.loads((folder / "cost.json").read_text()),
        "failures": json.loads((folder / "failures.json").read_text()),
    }
    data = labelling.RELEASED.parent
    config.write_atomic(data / "labels.parquet", (folder / "labels.parquet").read_bytes())
    config.write_atomic(data / "lists.json", (folder / "known.json").read_bytes())
    for name, value in {"labels": record, "corpus": report(), "poison": minimal}.items():
        text = json.dumps(value, indent=1) + "\n"
        config.write_atomic(RESULTS / f"{name}.json", text.encode())
    labelled = labelling.read(folder / "labels.parquet").id
    table = rows[rows.index.isin(labelled)].sort_index().reset_index()
    table["characters"] = table.ir.str.len().astype("int32")
    columns = ["id", "project", "suite", "split", "language", "characters"]
    config.write_parquet(data / "functions.parquet", table[columns])


def processor() -> str:
    """The name of this machine's processor."""
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def _answers_folder() -> Path:
    return stage("answers", ("sandbox", "naming"), labels_folder().name)


def answers() -> pd.DataFrame:
    """Labels with what LLVM makes of their lists (`optimised`, and `kept` in the function's own
    names) and the function's columns."""
    folder = _answers_folder()
    path = folder / "answers.parquet"
    with alone(folder):
        if not path.exists():
            _optimise(path)
    return pd.read_parquet(path)


def _optimise(path: Path) -> None:
    table = labels().merge(functions().drop(columns="unoptimised"), on="id")
    with journal.workers() as executor, _bar("optimise", len(table)) as bar:

        def optimised(row: tuple[str, str, str]) -> str | None:
            text, protocol, listed = row
            run = sandbox.shared().run(text, protocol, [passes.parse(listed)], text=True)[0]
            bar.update()
            return run.text if run.ok else None

        rows = zip(table.ir, table.protocol, table.passes, strict=True)
        table["optimised"] = list(executor.map(optimised, rows))
    table = table.dropna(subset=["optimised"]).reset_index(drop=True)
    table["kept"] = _kept(table)
    config.write_parquet(path, table)


def _kept(table: pd.DataFrame) -> list[str]:
    """`optimised` in the names of `ir`; as it is for the few where a pass went by the names."""
    rows = zip(table.ir, table.protocol, map(passes.parse, table.passes), strict=True)
    with _bar("name", len(table)) as bar:
        kept = []
        for text, known in zip(
            naming.optimise_all(list(rows), os.cpu_count() or 1), table.optimised, strict=True
        ):
            kept.append(text if text and naming.numbered(text) == known else known)
            bar.update()
    return kept


def examples(split: str) -> list[Example]:
    """The examples of a split, both protocols, in the order of ids."""
    table, lists = answers(), coreset()
    return [
        Example(
            row.id,
            row.protocol,
            row.ir,
            passes.parse(row.passes),
            int(row.unoptimised),
            int(row.best),
            row.kept,
            int(row.oz),
            _gains(lists[row.protocol], row.coreset),
        )
        for row in table[table.split == split].itertuples()
    ]


def _gains(lists: list[tuple[str, ...]], beyond_oz) -> tuple[tuple[tuple[str, ...], int], ...]:
    """`Example.gains` of a row of labels; lists that failed are not among them."""
    pairs = zip(lists, beyond_oz, strict=True)
    known = [(names, -int(beyond)) for names, beyond in pairs if pd.notna(beyond)]
    return ((passes.OZ, 0), *known)


def tokenizer_folder() -> Path:
    settings = (_answers_folder().name, config.scale().vocabulary)
    return stage("tokenizer", ("tokenizer", "prompt"), settings)


def texts(example: Example) -> Iterator[str]:
    """What the model will read and write of an example, marks and counts aside."""
    short, names = prompt.shorten(example.ir)
    yield short
    yield prompt.shorten_alike(example.optimised, names)


def tokenizer() -> tokenizers.Tokenizer:
    """The tokenizer trained on the train split: prompts and answers, renamed, marks left out."""
    folder = tokenizer_folder()
    with alone(folder):
        if not (folder / "tokenizer.json").exists():
            parts = (text for example in examples("train") for text in texts(example))
            tokenizers.train(parts, config.scale().vocabulary).save(folder)
    return tokenizers.load(folder)


def tokens_folder() -> Path:
    scale = config.scale()
    settings = (tokenizer_folder().name, scale.max_tokens, scale.code_tokens)
    return stage("tokens", ("dataset",), settings)


def tokens() -> list[dataset.Tokens]:
    """What the model is trained and validated on, encoded: of the splits `train` and `valid`. Their
    folder holds the tokenizer, too, and is all that `train_elsewhere` needs."""
    from llmopt import dataset

    folder = tokens_folder()
    with alone(folder):
        if not (folder / "valid.npz").exists():
            tok, scale = tokenizer(), config.scale()
            tok.save(folder)
            for split in ("train", "valid"):
                dataset.prepare(
                    examples(split),
                    tok,
                    scale.max_tokens,
                    folder / split,
                    code_tokens=scale.code_tokens,
                )
    return [dataset.load(folder / split) for split in ("train", "valid")]


def model_folder() -> Path:
    scale = config.scale()
    settings = (
        tokens_folder().name,
        scale.preset,
        scale.train_steps,
        scale.restart,
        scale.tokens_per_batch,
        scale.learning_rate,
        scale.code_repeats,
    )
    return stage("model", ("train", "validation", "baselines"), settings)


def model(on_step: Callable[[dict], None] | None = None, folder: Path | None = None) -> Path:
    """The folder of the model trained on the train split, with the rule that it chooses by and the
    baselines' lists beside it.

    `on_step` is handed to `train.train`: called with each logged row while the model learns. A
    `folder` of one's own survives edits of the code: a long run goes on in it as long as its
    settings and its data are the same.
    """
    folder = folder or model_folder()
    final = folder / "model"  # where `train.train` leaves it
    many = int(os.environ.get("WORLD_SIZE", 1)) > 1  # processes that train together share the lock
    with nullcontext() if many else alone(folder):
        if not (final / "baselines.json").exists():
            _train(folder, on_step)
            if int(os.environ.get("RANK", 0)) == 0:
                config.write_atomic(final / "rule.json", _rule(final).encode())
                _baselines(final)
    return final


def recipe():
    """The scale's `train.TrainConfig`.

    Where `accelerate launch` asks for FSDP (`configs/fsdp.yaml`), the model is spread over the
    processes and trained by AdamW, and the scale's batch is what all of them take in one step, in
    pieces of about one longest function on each device.
    """
    from llmopt import model, train  # torch, for those who need it

    scale = config.scale()
    sharded = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    share = scale.tokens_per_batch // (int(os.environ.get("WORLD_SIZE", 1)) if sharded else 1)
    pieces = max(1, share // scale.max_tokens) if sharded else 1
    return train.TrainConfig(
        preset=scale.preset,
        steps=scale.train_steps,
        tokens_per_batch=share // pieces,
        accumulate=pieces,
        optimizer="adamw" if sharded else "muon",
        sharded=sharded,
        learning_rate=scale.learning_rate,
        restart=scale.restart,
        code_repeats=scale.code_repeats,
        warmup=min(0.03, WARMUP / scale.train_steps),
        validate_every=max(250, scale.train_steps // 12),  # 250 in the paper
        checkpoint_every=250,
        precision=model.fast_precision(),
    )


def _train(folder: Path, on_step: Callable[[dict], None] | None) -> None:
    from llmopt import train, validation

    written = 32 if config.scale().generate_functions >= 1000 else 16
    judge = validation.Curves(tokenizer(), examples("valid"), coreset(), written=written)
    folder.mkdir(parents=True, exist_ok=True)  # each process of many opens its log there
    train.train(*tokens(), tokenizer(), recipe(), folder, on_step=on_step, judge=judge)


def find_model(folder: Path | None) -> Path:
    """A model's folder: the one given, or the released model's, or the current scale's (built if it
    is missing). Raises `InputError` where the one given is none."""
    if folder is None:
        return RELEASED if RELEASED.is_dir() else model()
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name one that `llmopt train` made")
    return folder


def train_elsewhere(tokens: Path, folder: Path) -> Path:
    """Train by the scale's recipe on a machine that has nothing but `tokens`, a copy of
    `tokens_folder()`: no corpus, no labels, no LLVM. `model(folder=...)` where those are finishes
    what comes back."""
    from llmopt import dataset, train

    data, held = (dataset.load(tokens / split) for split in ("train", "valid"))
    folder.mkdir(parents=True, exist_ok=True)  # each process of many opens its log there
    return train.train(data, held, tokenizers.load(tokens), recipe(), folder)


def _rule(folder: Path) -> str:
    from llmopt import choose, model

    known = examples("train")
    few = set(sorted({e.id for e in known})[:WEIGHED])  # ids are hashes: a sample
    known = [e for e in known if e.id in few] + examples("valid")
    rule = choose.calibrate(*model.load(folder), known, coreset())
    return json.dumps(rule.to_json(), indent=1)


def _baselines(folder: Path) -> None:
    rows = functions()
    rows = rows[rows.split == "train"]
    with journal.workers() as executor:
        single = {
            protocol: baselines.single_list(rows, labels(), protocol, executor)
            for protocol in PROTOCOLS
        }
    features = baselines.Features(coreset()).fit(examples("train"), examples("valid"))
    baselines.save(folder, single, features)


def test_functions() -> pd.DataFrame:
    """The functions that the scale evaluates on."""
    rows = wanted()
    return rows[rows.split == "test"]


def model_digest(folder: Path) -> str:
    """What a model folder holds, for the keys of what is made with it: sha256 of its files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.json")) + sorted(folder.glob("*.safetensors")):
        digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
