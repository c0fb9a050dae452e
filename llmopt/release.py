"""What is released of a training run and of its evaluation, and the model's card.

`models/reference` is a plain Hugging Face folder with half-precision weights, the rule that the
model chooses by and the baselines that it was compared with. What it scores is recorded in
`results/`: the rows of every function, their sums, and what the model wrote. The card is rendered
from these records and from nothing else.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pandas as pd
import torch

from llmopt import config, evaluate, llvm, model, pipeline, prompt, tables, tokenizer, trials
from llmopt.config import PROTOCOLS, InputError

SIZES = (0, 64, 128, 256, 512, 1024, 2048)  # tokens of a prompt, for the rates by size


def release(run: Path) -> Path:
    """Put the finished training run in the folder `run` into `models/reference`, and its log into
    `results/training.parquet`. Returns the model's folder; raises `InputError` where it is not
    finished."""
    made, folder = run / "model", pipeline.RELEASED
    beside = ("rule.json", "baselines.json", "features.skops")
    if not all((made / name).exists() for name in beside):
        raise InputError(f"{made}: no finished model; `llmopt train -o {run}` goes on with it")
    llama, tok = model.load(made)
    fresh = folder.with_name(f".{folder.name}-new")  # the released one stays until this is whole
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.parent.mkdir(exist_ok=True)
    model.export(llama.to(torch.float16), tok, fresh)
    for name in beside:
        shutil.copy(made / name, fresh / name)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    _write("training.parquet", pd.DataFrame(rows).astype({"step": "int32"}))
    functions = pipeline.functions()
    record = json.loads((made / "training.json").read_text()) | _circumstances()
    record["functions"] = int((functions.split == "train").sum())
    config.write_atomic(
        pipeline.RESULTS / "training.json", (json.dumps(record, indent=1) + "\n").encode()
    )
    return folder


def record(result: evaluate.Evaluation) -> dict:
    """Put an evaluation of the released model on the scale's test functions into `results/`:
    `evaluation.parquet`, `code.parquet` (without any code: it may be third parties'),
    `meaning.parquet` (verdicts on that code), and `evaluation.json` with the sums, whose value is
    returned."""
    functions = pipeline.functions().set_index("id")
    tok = tokenizer.load(pipeline.RELEASED)
    texts = functions.ir.loc[result.rows.id.unique()]
    prompts = texts.map(lambda text: len(prompt.encode_prompt(text, PROTOCOLS[0], tok)[0]))
    rows = result.rows.assign(suite=result.rows.id.map(functions.suite))
    code = result.code.assign(
        suite=result.code.id.map(functions.suite), tokens=result.code.id.map(prompts)
    )
    _write("evaluation.parquet", result.rows.assign(tokens=result.rows.id.map(prompts)))
    _write("meaning.parquet", result.meaning)
    code["error"] = code.error.str.split("\n").str[0]  # the lines after it quote code
    _write("code.parquet", code.drop(columns=["code", "reference", "input"]))
    value = (
        {"model": pipeline.model_digest(pipeline.RELEASED)}
        | {"max_new_tokens": config.scale().max_new_tokens}
        | _circumstances()
        | tables.summary(result.rows, result.code, result.left_out)
        | {"suites": _by_suite(rows), "code_by_tokens": by_tokens(code).to_dict("records")}
        | {"meaning": _meaning(result.meaning)}
    )
    text = json.dumps(value, indent=1) + "\n"
    config.write_atomic(pipeline.RESULTS / "evaluation.json", text.encode())
    return value


def record_trials(tried: trials.Trials) -> None:
    """Put what several lists a function bring into `results/`: `steps.parquet`, `spent.parquet`,
    and `trials.json` with the sums."""
    trials.write(tried, pipeline.RESULTS)
    value = {
        "model": pipeline.model_digest(pipeline.RELEASED),
        "rivals": pipeline.model_digest(trials.RIVALS),
        "functions": int(tried.spent.id.nunique()),
        "table": trials.table(tried, at=(1, 2, 4, 8, 16, 32, 100)).to_dict("records"),
    }
    text = json.dumps(_circumstances() | value, indent=1) + "\n"
    config.write_atomic(pipeline.RESULTS / "trials.json", text.encode())


def rivals(made: Path) -> Path:
    """Put what the rivals have learned, in the folder `made`, into `models/rivals`."""
    for path in sorted(made.glob("*.safetensors")):
        config.write_atomic(trials.RIVALS / path.name, path.read_bytes())
    return trials.RIVALS


def by_tokens(code: pd.DataFrame) -> pd.DataFrame:
    """Rates of what the model wrote (percent), by protocol and by the tokens of the prompt."""
    bins = pd.cut(code.tokens, SIZES)
    table = code.groupby(["protocol", bins], observed=True).agg(
        functions=("id", "size"), compiles=("compiles", "mean"), exact=("exact", "mean")
    )
    table[["compiles", "exact"]] *= 100
    table = table.reset_index()
    table.insert(1, "at_most", [int(one.right) for one in table.pop("tokens")])
    return table


def _by_suite(rows: pd.DataFrame) -> dict:
    found: dict[str, dict] = {}
    table = tables.table(rows, by=("suite", "protocol", "method"))
    for row in table.itertuples():
        one = {"functions": row.functions, "improvement": row.percent, "ci95": list(row.interval)}
        one["with_oz_backup"] = row.with_oz_backup
        found.setdefault(row.suite, {}).setdefault(row.protocol, {})[row.method] = one
    return found


def _meaning(rows: pd.DataFrame) -> list[dict]:
    return [] if rows.empty else tables.meaning(rows).to_dict("records")


def _write(name: str, table: pd.DataFrame) -> None:
    config.write_parquet(pipeline.RESULTS / name, table)


def _circumstances() -> dict:
    return {
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
        "llvm": llvm.version(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": {"cores": os.cpu_count(), "processor": pipeline.processor()},
    }


def _commit() -> str:
    """The commit that the code is at, or an empty string outside a repository or without git."""
    command = ["git", "-C", str(config.ROOT), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


# --- the card ------------------------------------------------------------------------------------

CARD = config.ROOT / "models" / "card.md.template"


def card() -> Path:
    """Write `models/reference/README.md` from the records in `results/` and nothing else."""
    trained, evaluated = pipeline.record("training"), pipeline.record("evaluation")
    log = pd.read_parquet(pipeline.RESULTS / "training.parquet").iloc[-1]
    shape = json.loads((pipeline.RELEASED / "config.json").read_text())
    text = CARD.read_text().format(
        parameters=model.parameters(trained["run"]["preset"], shape["vocab_size"]),
        functions=trained["functions"],
        llvm=trained["llvm"],
        steps=int(log.step),
        tokens=log.tokens / 1e6,
        hours=log.seconds / 3600,
        processor=trained["machine"]["processor"],
        cores=trained["machine"]["cores"],
        trained=trained["date"],
        commit=trained["commit"],
        evaluated=evaluated["date"],
        written=evaluated["protocols"][PROTOCOLS[0]]["codegen"]["functions"],
        methods=_methods(evaluated["protocols"]),
        suites=_suites(evaluated["suites"]),
        code=_code(evaluated["code_by_tokens"]),
    )
    path = pipeline.RELEASED / "README.md"
    config.write_atomic(path, text.encode())
    return path


def _markdown(rows: list[list[str]]) -> str:
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|---|" + "---:|" * (len(rows[0]) - 1), *body])


def _gain(row: dict) -> str:
    low, high = row["ci95"]
    return f"{row['improvement']:.2f}% [{low:.2f}, {high:.2f}]"


def _methods(protocols: dict) -> str:
    rows = [["protocol, method", "in one shot", "improved", "regressed", "with backup"]]
    for protocol, found in protocols.items():
        for name, row in found["methods"].items():
            counts = f"{row['improved']:,}", f"{row['regressed']:,}"
            backup = f"{row['with_oz_backup']:.2f}%"
            rows.append([f"{protocol}, {name}", _gain(row), *counts, backup])
    return _markdown(rows)


def _suites(suites: dict) -> str:
    rows = [["suite", "functions", *PROTOCOLS, *(f"{p}, with backup" for p in PROTOCOLS)]]
    for suite, found in sorted(suites.items()):
        own = [found[protocol][evaluate.MODEL] for protocol in PROTOCOLS]
        backup = (f"{row['with_oz_backup']:.2f}%" for row in own)
        rows.append([suite, f"{own[0]['functions']:,}", *map(_gain, own), *backup])
    return _markdown(rows)


def _code(sizes: list[dict]) -> str:
    rows = [["protocol, tokens", "functions", "compiles", "exactly LLVM's"]]
    for row in sizes:
        rates = f"{row['compiles']:.1f}%", f"{row['exact']:.1f}%"
        name = f"{row['protocol']}, to {row['at_most']:,}"
        rows.append([name, f"{row['functions']:,}", *rates])
    return _markdown(rows)
