"""What several test modules need: the book's own sample of C, compiled once."""

import os

import pytest

os.environ["LLMOPT_SCALE"] = "smoke"
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def sample():
    """{name: normalised IR} of `data/sample/algorithms.c`."""
    from llmopt import frontend, ir
    from llmopt.config import ROOT

    compiled = frontend.compile(ROOT / "data" / "sample" / "algorithms.c")
    assert compiled.ok, compiled.error
    return ir.split(compiled.ir)


def pytest_sessionfinish() -> None:
    """End the workers that this thread shares, so that the summary is what is printed last."""
    from llmopt import sandbox, semantics

    sandbox.shared().close()
    semantics.shared().close()
