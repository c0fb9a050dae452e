"""`llmopt bench`: what `benchmarks/` measures, as text or as JSON."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from llmopt import config
from llmopt.console import Json, ModelFolder, Scale, emit, set_scale

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


def benchmark(name: str):
    """`measure` of a file in `benchmarks/`."""
    import runpy

    return runpy.run_path(str(config.ROOT / "benchmarks" / f"{name}.py"))["measure"]


@app.command("compile", epilog="Example: llmopt bench compile --functions 50 --json")
def bench_compile(
    functions: Annotated[int, typer.Option(min=1, help="How many of the test split.")] = 100,
    scale: Scale = None,
    as_json: Json = False,
) -> None:
    """LLVM in process against an `opt` process a list, on the same functions in one run."""
    set_scale(scale)
    value = benchmark("compile")(functions)
    if as_json:
        emit(value)
        return
    for name in ("oz", "three_passes"):
        row = value if name == "oz" else value["three_passes"]
        print(
            f"{name:13} {value['functions']} functions: in process {row['ms_in_process']:.3f} ms, "
            f"opt {row['ms_opt']:.1f} ms, ratio {row['ratio']:.0f}"
        )


@app.command("search", epilog="Example: llmopt bench search --functions 20 --json")
def bench_search(
    functions: Annotated[int, typer.Option(min=1, help="How many of the valid split.")] = 300,
    compilations: Annotated[int, typer.Option(min=10, help="Budget a function.")] = 3000,
    scale: Scale = None,
    as_json: Json = False,
) -> None:
    """Improvement over -Oz against compilations: uniform random lists and our search."""
    set_scale(scale)
    value = benchmark("search")(functions, compilations)
    if as_json:
        emit(value)
        return
    for protocol, row in value["protocols"].items():
        print(f"{protocol}, {value['functions']} functions: % below -Oz after so many compilations")
        for name in ("random", "ours"):
            points = zip(value["compilations"], row[name], strict=True)
            print(f"  {name:6}", "  ".join(f"{at}: {gain:.2f}" for at, gain in points))
    speed = value["throughput"]
    for name, rate in speed["per_second"].items():
        print(f"{name:16} {rate:7.0f} lists a second on one core")


@app.command("labels", epilog="Example: llmopt bench labels --functions 50")
def bench_labels(
    functions: Annotated[int, typer.Option(min=1, help="How many of the labelled ones.")] = 100,
    scale: Scale = None,
    as_json: Json = False,
) -> None:
    """Run released labels again through `opt`; exits with 1 where a count differs."""
    set_scale(scale)
    value = benchmark("labels")(functions)
    if as_json:
        emit(value)
    else:
        print(f"{value['labels']} labels run again through opt, {len(value['differences'])} differ")
    if value["differences"]:
        raise typer.Exit(1)


@app.command("train", epilog="Example: llmopt bench train --preset smoke --steps 3 --json")
def bench_train(
    preset: Annotated[str, typer.Option(help="A model preset.")] = "reference",
    steps: Annotated[int, typer.Option(min=1)] = 5,
    tokens: Annotated[int, typer.Option(min=600, help="A batch, padding included.")] = 4096,
    compiled: Annotated[bool, typer.Option("--compiled", help="With torch.compile.")] = False,
    as_json: Json = False,
) -> None:
    """A training step beside a matrix product of the same machine; memory beside its plan."""
    from llmopt import model

    model.shape(preset)
    precisions = ["no", "bf16"] if model.has_bfloat16() else ["no"]
    rows = benchmark("train")(preset, precisions, steps, tokens, compiled)
    if as_json:
        emit(rows)
        return
    for row in rows:
        print(
            f"{row['preset']}, {'bfloat16' if row['precision'] == 'bf16' else 'float32'} on "
            f"{row['device']}: {row['tokens_per_second']:.0f} tokens a second, "
            f"{row['utilisation']:.0%} of a matrix product; peak {row['peak_bytes'] / 2**20:.0f} "
            f"MiB, planned {row['planned_bytes'] / 2**20:.0f}"
        )


@app.command("generate", epilog="Example: llmopt bench generate --functions 16 --json")
def bench_generate(
    functions: Annotated[int, typer.Option(min=1, help="Of the test split.")] = 64,
    tokens: Annotated[int, typer.Option(min=2, help="Of a whole answer, at most.")] = 512,
    model: ModelFolder = None,
    scale: Scale = None,
    as_json: Json = False,
) -> None:
    """Pass lists and whole answers beside `transformers`' own `generate`, on the same prompts."""
    set_scale(scale)
    from llmopt import pipeline

    value = benchmark("generate")(pipeline.find_model(model), functions, tokens)
    if as_json:
        emit(value)
        return
    for what in ("lists", "answers"):
        row = value[what]
        print(
            f"{what:8} {row['functions_per_second']:.1f} functions, "
            f"{row['tokens_per_second']:.0f} tokens a second, {row['ratio']:.1f} times as fast as "
            f"transformers; {row['same']:.1%} are the same"
        )


@app.command("levers", epilog="Example: llmopt bench levers --only adamw --tokens 1000000")
def bench_levers(
    only: Annotated[list[str] | None, typer.Option(help="Runs to make; else all.")] = None,
    functions: Annotated[int, typer.Option(min=1, help="Of the train split.")] = 8000,
    tokens: Annotated[int, typer.Option(min=1, help="A run.")] = 4_000_000,
    preset: Annotated[str, typer.Option(help="A model preset.")] = "classroom",
    scale: Scale = None,
) -> None:
    """Train small models that differ in one setting each; a JSON row a run on standard output."""
    set_scale(scale)
    benchmark("levers")(only, functions, tokens, preset)


@app.command("corpus", epilog="Example: llmopt bench corpus --scale smoke")
def bench_corpus(scale: Scale = None, as_json: Json = False) -> None:
    """Build the scale's corpus from nothing and join it with the released labels; exits with 1
    where it is the scale of the labels and one of its functions has none."""
    settings = set_scale(scale)
    value = benchmark("corpus")()
    if as_json:
        emit(value)
    else:
        print(
            f"{value['compiled']} of {value['files']} files compiled in {value['seconds']:.0f} s, "
            f"{value['functions']} functions, {value['unlabelled']} without a label"
        )
    from llmopt import pipeline

    if value["unlabelled"] and pipeline.record("labels")["scale"]["name"] == settings.name:
        raise typer.Exit(1)


Release = Annotated[
    bool, typer.Option("--release", help="Put the rows into results/, with how they were made.")
]


@app.command("objects", epilog="Example: llmopt bench objects --scale smoke --functions 10")
def bench_objects(
    functions: Annotated[
        int | None, typer.Option(min=1, help="How many of the test split; else all.")
    ] = None,
    release: Release = False,
    scale: Scale = None,
    as_json: Json = False,
) -> None:
    """Instructions and bytes of machine code that the recorded evaluation's lists leave."""
    set_scale(scale)
    started = time.time()
    rows = benchmark("objects")(functions)
    value = {"functions": rows.id.nunique(), "lists": len(rows)}
    _finish("objects", rows, value, started, release, as_json)


@app.command("window", epilog="Example: llmopt bench window --scale smoke --searched 5")
def bench_window(
    searched: Annotated[
        int, typer.Option(min=1, help="Functions beyond the corpus whose gain is measured.")
    ] = 300,
    release: Release = False,
    scale: Scale = None,
    as_json: Json = False,
) -> None:
    """Tokens, instructions and gain of all functions of the test projects, however long."""
    set_scale(scale)
    started = time.time()
    rows, missing = benchmark("window")(searched)
    long = rows[rows.best.isna()]
    value = {"functions": rows.id.nunique(), "beyond_the_corpus": long.id.nunique()}
    value |= {"searched": long[long.coreset.notna()].id.nunique(), "missing": missing}
    _finish("window", rows, value, started, release, as_json)


@app.command("constants", epilog="Example: llmopt bench constants --scale smoke --functions 2")
def bench_constants(
    functions: Annotated[int, typer.Option(min=1, help="How many are written once more.")] = 200,
    release: Release = False,
    scale: Scale = None,
    as_json: Json = False,
) -> None:
    """Constants in code that the released model writes, beside LLVM's."""
    from llmopt import pipeline

    set_scale(scale)
    started = time.time()
    rows = benchmark("constants")(functions)
    value = {"functions": rows.id.nunique(), "constants": len(rows)}
    value["right"] = round(float(rows.right.mean()), 4)
    value["model"] = pipeline.model_digest(pipeline.RELEASED)
    _finish("constants", rows, value, started, release, as_json)


def _finish(name: str, rows, value: dict, started: float, release: bool, as_json: bool) -> None:
    """Report `value`; for a release, write the rows and, into `results/limits.json`, how they came
    about."""
    import datetime
    import json
    import os

    from llmopt import llvm, pipeline

    value = {
        "command": f"llmopt bench {name} --scale {config.scale().name} --release",
        "date": datetime.date.today().isoformat(),
        "llvm": llvm.version(),
        "machine": {"cores": os.cpu_count(), "processor": pipeline.processor()},
        "seconds": round(time.time() - started, 1),
    } | value
    if release:
        config.write_parquet(pipeline.RESULTS / f"{name}.parquet", rows)
        path = pipeline.RESULTS / "limits.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        text = json.dumps(dict(sorted((known | {name: value}).items())), indent=1) + "\n"
        config.write_atomic(path, text.encode())
    if as_json:
        emit(value)
        return
    print(", ".join(f"{key} {value[key]}" for key in list(value)[5:]))
