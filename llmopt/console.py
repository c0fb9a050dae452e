"""What the commands share: options that mean the same everywhere, messages, progress, JSON."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from llmopt import config

Scale = Annotated[
    str | None,
    typer.Option("--scale", help="smoke, classroom, reference or paper [env: LLMOPT_SCALE]"),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on standard output.")]
ModelFolder = Annotated[
    Path | None,
    typer.Option("--model", help="A folder that `llmopt train` made; else the released model."),
]


def say(text: str) -> None:
    """A line for people, out of the way of standard output."""
    print(f"llmopt: {text}", file=sys.stderr)


def set_scale(name: str | None) -> config.Scale:
    scale = config.scale(name)
    os.environ["LLMOPT_SCALE"] = scale.name  # the pipeline and its workers read it there
    return scale


@contextmanager
def bar(title: str, total: int) -> Iterator:
    from tqdm import tqdm

    with tqdm(total=total, desc=title, unit="function", file=sys.stderr, disable=None) as progress:
        yield progress


def emit(value: dict) -> None:
    print(json.dumps(value, indent=1))
