"""The command line: arguments in, calls to the package, text or JSON out; nothing else.

Exits: 0 done, 1 the check or evaluation failed, 2 bad usage or input (one line on standard error),
130 interrupted (what was done is kept).
"""

from __future__ import annotations

import errno
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from llmopt import bench, config
from llmopt.config import InputError
from llmopt.console import Json, ModelFolder, Scale, bar, emit, say, set_scale

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Large language models for compiler optimization: search, train, evaluate, optimise.",
)
corpus_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(corpus_app, name="corpus", help="Build the corpus, or look at code of your own.")
app.add_typer(bench.app, name="bench", help="Measure, as ratios within one run.")

CANNOT_WRITE = {
    getattr(errno, name)
    for name in "ENOSPC EDQUOT EFBIG EACCES EPERM EROFS EEXIST ENOTDIR EISDIR ENAMETOOLONG".split()
}


# --- doctor ------------------------------------------------------------------------------------


@app.command(epilog="Example: llmopt doctor --json")
def doctor(as_json: Json = False) -> None:
    """What was found of LLVM, clang and Graphviz, and the command that mends what is missing."""
    from llmopt import frontend, graph, llvm

    def library() -> str:
        return f"{llvm.version()} ({llvm.find_library()})"

    def clang() -> str:
        command, version = frontend.available()
        return f"{version} ({command})"

    def graphviz() -> str:
        return str(Path(graph.graphviz().__file__).parent)

    checks = {}
    needed = {"libLLVM": library, "clang": clang, "graphviz": graphviz}
    needed["opt"] = lambda: str(llvm.find_opt())
    for name, check in needed.items():
        try:
            checks[name] = {"ok": True, "found": check()}
        except InputError as error:
            checks[name] = {"ok": False, "mend": str(error)}
    checks["home"] = {"ok": True, "found": str(config.home())}
    if as_json:
        emit(checks)
    else:
        for name, found in checks.items():
            mark = "ok     " if found["ok"] else "missing"
            print(f"{mark} {name:8} {found.get('found') or found['mend']}")
    # `opt` only serves tests, benchmarks and other LLVMs, and Graphviz the book.
    if not (checks["libLLVM"]["ok"] and checks["clang"]["ok"]):
        raise typer.Exit(1)


# --- the pipeline ------------------------------------------------------------------------------


@corpus_app.command("build", epilog="Example: llmopt corpus build --scale classroom")
def corpus_build(scale: Scale = None, as_json: Json = False) -> None:
    """Fetch, compile, split and deduplicate the scale's projects."""
    set_scale(scale)
    from llmopt import pipeline

    report = pipeline.report()
    if as_json:
        emit(report)
        return
    print(f"{'project':24} {'split':6} {'files':>6} {'compiled':>9} {'functions':>10} {'kept':>6}")
    for row in report["projects"]:
        print(
            f"{row['project']:24} {row['split']:6} {row['files']:6} {row['compiled']:9} "
            f"{row['functions']:10} {row['kept']:6}"
        )
    for row in report["missing"]:
        say(row["reason"])
    print(f"{sum(report['functions'].values())} functions in {pipeline.corpus_folder()}")


@corpus_app.command("read", epilog="Example: llmopt corpus read data/sample --json")
def corpus_read(
    path: Annotated[str, typer.Argument(help="A file, a folder, or with --commit a git URL.")],
    commit: Annotated[str | None, typer.Option(help="Full hash of a commit to read.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", help="Folder for functions.parquet, a built corpus.")
    ] = None,
    as_json: Json = False,
) -> None:
    """The functions of C, C++ or LLVM-IR, and what could not be read. With -o they are kept, for
    `llmopt autotune` and `llmopt evaluate`."""
    check_folder(output)
    if commit:
        from llmopt import sources

        path = sources.checkout(path, commit)
    reading = read_folder(Path(path))
    if output:
        functions = reading.functions.drop_duplicates("structural_hash")
        config.write_parquet(output / "functions.parquet", functions)
    if as_json:
        columns = ["id", "name", "file", "unoptimised"]
        rows = reading.functions[columns].to_dict("records")
        emit({"functions": rows, "problems": [list(problem) for problem in reading.problems]})
        return
    for row in reading.functions.itertuples():
        print(f"{row.unoptimised:6} {row.file}: {row.name}")
    report_problems(reading.problems)


def report_problems(problems: tuple[tuple[str, str], ...]) -> None:
    for _, reason in problems:
        say(f"left out: {reason}")


@app.command(epilog="Example: llmopt autotune data/sample --compilations 200")
def autotune(
    path: Annotated[Path | None, typer.Argument(help="C, C++ or IR; else the corpus.")] = None,
    scale: Scale = None,
    compilations: Annotated[int | None, typer.Option(min=1, help="Search budget.")] = None,
    output: Annotated[Path | None, typer.Option("-o", help="Folder for journal, labels.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; else one a core.")] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler.")] = None,
    release: Annotated[
        bool, typer.Option("--release", help="Renew data/ and results/ from the corpus' labels.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Search for the best pass lists under both protocols and write labels.parquet."""
    settings = set_scale(scale)
    if release and path:
        raise InputError("--release is for the labels of the scale's corpus: give no path with it")
    check_folder(output)
    from llmopt import labels as labelling
    from llmopt import pipeline

    if (path, compilations, output, scheduler, workers) == (None,) * 5:
        labels, folder = pipeline.labels(anew=release), pipeline.labels_folder(anew=release)
    else:
        if path is None:
            rows = pipeline.wanted()
        else:
            rows = read_any(path)
        budget = labelling.Budget.of(settings)
        if compilations:
            budget = replace(budget, compilations=compilations)
        ids = tuple(sorted(rows.id))
        folder = output or pipeline.stage("labels", ("labels",), (ids, budget))
        labels = pipeline.search(rows, folder, budget, workers, scheduler)
    if release:
        pipeline.release(folder)
    result = {"labels": str(folder / "labels.parquet"), "protocols": {}}
    for protocol, group in labels.groupby("protocol"):
        result["protocols"][protocol] = {
            "functions": len(group),
            "oz": int(group.oz.sum()),
            "best": int(group.best.sum()),
            "improved": int((group.best < group.oz).sum()),
            "compilations": int(group.compilations.sum()),
        }
    if as_json:
        emit(result)
        return
    for protocol, row in result["protocols"].items():
        gain = 100 * (row["oz"] - row["best"]) / max(row["oz"], 1)
        print(
            f"{protocol:8} {row['functions']} functions, -Oz {row['oz']} instructions, best "
            f"{row['best']} ({gain:.2f}% fewer), {row['improved']} improved, "
            f"{row['compilations']} compilations"
        )
    print(result["labels"])


@app.command(epilog="Example: llmopt tokenizer --scale smoke")
def tokenizer(scale: Scale = None, as_json: Json = False) -> None:
    """Train the scale's tokenizer on its train split and say how far its tokens reach, by suite."""
    set_scale(scale)
    from llmopt import pipeline, prompt

    tok, functions = pipeline.tokenizer(), pipeline.test_functions()
    found = {"as read": {}, "as printed": {}}
    for suite, texts in functions.groupby("suite").ir:
        characters = texts.str.len().sum()
        for how, cut in (("as read", lambda text: prompt.shorten(text)[0]), ("as printed", str)):
            tokens = sum(len(tok.encode(cut(text))) for text in texts)
            found[how][suite] = float(characters / tokens)
    value = {
        "folder": str(pipeline.tokenizer_folder()),
        "vocabulary": len(tok),
        "characters_per_token": found,
    }
    if as_json:
        emit(value)
        return
    print(f"{len(tok)} tokens. Characters of the test functions' IR a token, when the IR is")
    print(f"{'':20} {'shortened':>10} {'as printed':>10}")
    for suite, reach in found["as read"].items():
        print(f"{suite:20} {reach:10.2f} {found['as printed'][suite]:10.2f}")
    print(value["folder"])


@app.command(epilog="Example: llmopt train --scale smoke -o build/my-run")
def train(
    scale: Scale = None,
    output: Annotated[
        Path | None, typer.Option("-o", help="Folder of the run; it outlives edits of the code.")
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="Prepared tokens; then no corpus is needed. With -o.")
    ] = None,
    rivals: Annotated[
        bool, typer.Option("--rivals", help="Not the model, but what it is compared with.")
    ] = False,
    release: Annotated[bool, typer.Option("--release", help="Then put it into models/.")] = False,
    as_json: Json = False,
) -> None:
    """Train the scale's model on its train split (what is missing before it is made first).

    A run that was stopped goes on where its last whole checkpoint is.
    """
    set_scale(scale)
    check_folder(output)
    if rivals and (output or tokens):
        raise InputError("--rivals: they have a folder of their own; leave out -o and --tokens")
    if release and tokens:
        raise InputError("--release: finish the run without --tokens first")
    if tokens and not output:
        raise InputError("--tokens: name the folder of the run, too: -o DIR")
    from llmopt import pipeline

    if rivals:
        from llmopt import trials

        folder = trials.rivals_folder(anew=True)
    elif tokens:
        folder = pipeline.train_elsewhere(tokens, output)
    else:
        folder = pipeline.model(folder=output)
    if release:
        from llmopt import release as releasing

        folder = releasing.rivals(folder) if rivals else releasing.release(folder.parent)
    if as_json:
        emit({"model": str(folder)})
    else:
        print(folder)


# --- using it ----------------------------------------------------------------------------------


@app.command(epilog="Example: llmopt optimize data/sample/algorithms.c --protocol minsize -o out")
def optimize(
    files: Annotated[list[Path], typer.Argument(help=".c .cc .cpp .cxx .ll .bc or folders")],
    protocol: Annotated[str, typer.Option(help="stripped or minsize")] = "minsize",
    model: ModelFolder = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Lists to try a function; else the model's one.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", help="Folder for the optimised IR.")] = None,
    scale: Scale = None,
    as_json: Json = False,
) -> None:
    """Ask the model for each function's pass list; keep -Oz wherever it is better. With --samples,
    its one list and then others that it finds likely are tried, and the best is kept.

    The IR that is written is what LLVM made of the list, one file a function; never the model's.
    It is normalised like the input: for reading and counting, not for linking.
    """
    config.check_protocol(protocol)
    set_scale(scale)
    check_folder(output)
    from llmopt import ir, judge, passes, pipeline, propose

    functions = read_all(files)
    folder = pipeline.find_model(model)
    key = (tuple(functions.id), pipeline.model_digest(folder))
    journal_folder = pipeline.stage("optimize", ("propose",), key)
    with bar("ask the model", functions.id.nunique()) as progress:
        said = propose.proposals(
            folder,
            "model",
            functions.drop_duplicates("id"),
            (protocol,),
            journal_folder,
            samples or 1,
            on_done=progress.update,
        )
    rows = []
    for row in functions.itertuples():
        lists = [passes.parse(text) for text in said[row.id, protocol][0]] or [passes.OZ]
        try:
            used = judge.best(row.ir, protocol, lists)
        except InputError as error:
            say(f"left out: {row.file}: {row.name}: {error}")
            continue
        rows.append(
            {
                "name": row.name,
                "file": row.file,
                "unoptimised": used.unoptimised,
                "oz": used.oz,
                "chosen": used.count,
                "passes": list(used.passes),
                "asked": list(lists[0]),
                "extra_compilations": len(set(lists) - {passes.OZ}),
            }
        )
        if output:
            name = f"{Path(row.file).stem}.{row.name}".replace(os.sep, "_")[:150]
            name += f".{row.id[:8]}.ll"  # files and overloads may share the rest
            text = ir.module_text(used.text, protocol)
            config.write_atomic(output / name, text.encode())
            rows[-1]["output"] = str(output / name)
    if not rows:
        raise InputError("no function that LLVM can optimise in what was given")
    if as_json:
        emit({"protocol": protocol, "model": str(folder), "functions": rows})
        return
    print(f"{'unoptimised':>11} {'-Oz':>6} {'chosen':>6}  function: passes")
    for row in rows:
        print(
            f"{row['unoptimised']:11} {row['oz']:6} {row['chosen']:6}  "
            f"{row['name']}: {passes.format(row['passes'])}"
        )


def check_folder(path: Path | None) -> None:
    """An output folder that can be one, before any work is done for it."""
    for part in [path, *path.parents] if path else []:
        if part.exists() and not part.is_dir():
            raise InputError(f"{part}: a file, not a folder; name another folder for -o")


def read_corpus(path: Path):
    """The test split of a corpus that `llmopt corpus build` made."""
    import pandas as pd

    try:
        return pd.read_parquet(path).query("split == 'test'")
    except Exception as error:  # parquet readers raise many kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: not a built corpus ({reason}); build it again") from None


def read_any(path: Path):
    """The functions of a built corpus' test split, or of C, C++ and IR, each once."""
    if (path / "functions.parquet").exists():
        return read_corpus(path / "functions.parquet").drop_duplicates("id")
    return read_all([path]).drop_duplicates("id")


def read_folder(path: Path):
    """`corpus.read_directory` with a bar: C++ takes about a second a file."""
    from llmopt import corpus

    with bar("read", 0) as progress:

        def tell(done: int, total: int, what: str) -> None:
            progress.total, progress.n = total, done
            progress.refresh()

        return corpus.read_directory(path, progress=tell)


def read_all(paths: list[Path]):
    """All functions below the paths, with one line for whatever cannot be read; the rest goes on.

    Raises `InputError` where there is nothing to go on with.
    """
    import pandas as pd

    tables, errors = [], []
    for path in paths:
        try:
            reading = read_folder(path)
        except InputError as error:
            errors.append(error)
            continue
        tables.append(reading.functions)
        report_problems(reading.problems)
    if not tables:
        raise errors[0]
    for error in errors:
        say(f"left out: {error}")
    return pd.concat(tables, ignore_index=True)


@app.command(epilog="Example: llmopt evaluate data/sample --limit 10 --json result.json")
def evaluate(
    path: Annotated[
        Path | None, typer.Argument(help="A built corpus or C, C++, IR; else the test split.")
    ] = None,
    model: ModelFolder = None,
    protocol: Annotated[str, typer.Option(help="stripped, minsize or both")] = "both",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many functions.")] = None,
    methods: Annotated[
        str | None, typer.Option(help="Also those that try several lists: all, or random,coreset …")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--json", help="Write the result to this file.")
    ] = None,
    release: Annotated[
        bool, typer.Option("--release", help="Put the released model's result into results/.")
    ] = False,
    scale: Scale = None,
) -> None:
    """The paper's tables for a set of functions, under both protocols, with intervals: all methods
    that name one list a function. With --methods those, too, that try several (on the test split,
    the scale's first `compare_functions`): what each further compilation brings."""
    protocols = config.PROTOCOLS if protocol == "both" else (config.check_protocol(protocol),)
    settings = set_scale(scale)
    whole = path is None and limit is None and protocols == config.PROTOCOLS
    if output and output.is_dir():
        raise InputError(f"{output}: a folder; --json takes the name of a file")
    if release and not (whole and model is None):
        raise InputError("--release: of the released model on the whole test split only")
    from llmopt import baselines, journal, pipeline, tables, trials
    from llmopt import evaluate as evaluation

    several = trials.check(methods) if methods else ()
    if release and several not in ((), tuple(trials.MOST)):
        raise InputError("--release: with --methods all or none, as a record is replaced whole")
    folder = pipeline.find_model(model)
    rivals, tried = baselines.load(folder), None
    if whole:
        result = evaluation.test_split(folder)
        if several:
            tried = trials.test_split(folder, several)
    else:
        rows, long = evaluation.test_functions(folder) if path is None else (read_any(path), 0)
        rows = rows.drop_duplicates("id").head(limit or len(rows))
        key = (tuple(rows.id), pipeline.model_digest(folder), settings)
        directory = pipeline.stage("evaluate", ("evaluate", "generate", "labels"), key)
        with journal.workers() as pool:
            labels = pipeline.labels() if path is None else pipeline.search(rows, directory)
            many = len(rows) + min(len(rows), settings.generate_functions)
            with bar("ask the model", len(protocols) * many) as progress:
                result = evaluation.evaluate(
                    rows,
                    labels,
                    folder,
                    rivals,
                    directory,
                    settings.generate_functions,
                    settings.max_new_tokens,
                    protocols,
                    pool,
                    progress.update,
                )
            if several:
                with bar("compare", len(protocols) * len(rows)) as progress:
                    tried = trials.compare(
                        rows,
                        several,
                        trials.known(),
                        folder,
                        trials.directory(folder, rows),
                        protocols,
                        pool,
                        progress.update,
                    )
        if long:
            result.left_out[f"prompt and answer over {settings.max_tokens} tokens"] = long
    value = {"model": str(folder), "scale": settings.name} | tables.summary(
        result.rows, result.code, result.left_out
    )
    if tried:
        value["trials"] = trials.table(tried).to_dict("records")
    if release:
        from llmopt import claims, opening
        from llmopt import release as releasing

        releasing.record(result)
        if tried:
            releasing.record_trials(tried)
        releasing.card()
        config.write_atomic(claims.PAGE, claims.page().encode())
        opening.write()
    if output:
        config.write_atomic(output, (json.dumps(value, indent=1) + "\n").encode())
    print_tables(value)


def print_tables(value: dict) -> None:
    for protocol, found in value["protocols"].items():
        print(f"\n{protocol}: {found['functions']} functions, -Oz {found['oz']} instructions")
        print(
            f"  {'method':14} {'over -Oz':>9} {'95% interval':>18} {'improved':>8} "
            f"{'regressed':>9} {'compilations':>12} {'with backup':>11}"
        )
        for name, row in found["methods"].items():
            low, high = row["ci95"]
            print(
                f"  {name:14} {row['improvement']:8.2f}% {low:8.2f}% {high:7.2f}% "
                f"{row['improved']:8} {row['regressed']:9} {row['extra_compilations']:12} "
                f"{row['with_oz_backup']:10.2f}%"
            )
        code = found["codegen"]
        if code["functions"]:
            errors = [
                "none given" if code[name] is None else f"{code[name]:.0f}%"
                for name in ("mape_before", "mape_after")
            ]
            print(
                f"  code of {code['functions']} functions: compiles {code['compiles']:.1f}%, "
                f"exact {code['exact_match']:.1f}%, BLEU {code['bleu']:.3f} (copying the input "
                f"{code['bleu_of_copying_the_input']:.3f}), count error before {errors[0]}, "
                f"after {errors[1]}"
            )
    if "trials" in value:
        print_trials(value["trials"])
    for reason, count in value["left_out"].items():
        if count:
            print(f"left out: {count}: {reason}")


def print_trials(rows: list[dict]) -> None:
    for protocol in dict.fromkeys(row["protocol"] for row in rows):
        print(f"\n{protocol}: the best of several lists a function")
        print(
            f"  {'method':14} {'lists':>5} {'compiled':>8} {'over -Oz':>9} {'95% interval':>18} "
            f"{'with backup':>11} {'95% interval':>18} {'ms a function':>13}"
        )
        for row in (row for row in rows if row["protocol"] == protocol):
            ends = [*row["interval"], *row["with_oz_backup_interval"]]
            seconds = row["seconds_choosing"] + row["seconds_compiling"]
            print(
                f"  {row['method']:14} {row['tried']:5} {row['compilations']:8.1f} "
                f"{row['percent']:8.2f}% {ends[0]:8.2f}% {ends[1]:7.2f}% "
                f"{row['with_oz_backup']:10.2f}% {ends[2]:8.2f}% {ends[3]:7.2f}% "
                f"{1000 * seconds:13.1f}"
            )


def main() -> None:
    """Run the command line; every expected failure is one line on standard error."""
    try:
        code = app(standalone_mode=False)
    except InputError as error:
        say(str(error))
        code = 2
    except BrokenPipeError:  # the reader of our output has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        say(f"cannot write {error.filename or 'results'}: {error.strerror}; what was done is kept")
        code = 2
    except typer.TyperException as error:  # every complaint about usage
        say(f"{error.format_message()} (see `llmopt --help`)")
        code = 2
    if code == 130:  # typer's word for an interrupt
        say("interrupted; what was done is kept, the same command goes on with the rest")
        sys.stdout.flush()
        os._exit(130)  # no teardown, which another interrupt or a library's threads could break
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
