"""Render the book: `python book/build.py [--output DIR]`. `make book` and the tests both run this.

The scale comes from LLMOPT_SCALE. Warnings are errors: a failing notebook, a reference that does
not resolve or a bad directive ends in exit 1, and the next build reads every page again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROFILE = """\
c.IPKernelApp.log_level = 40  # no note about each kernel's transport
c.InlineBackend.figure_formats = {"svg"}  # sharp on every screen
# tqdm.auto would leave an empty widget on the page; without widgets it writes text to stderr
c.InteractiveShellApp.exec_lines = [
    "import tqdm.notebook; tqdm.notebook.IProgress = None; del tqdm"
]
"""


def environment() -> dict[str, str]:
    """The caller's environment without what would make the pages depend on the caller."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSTARTUP")}
    made = Path(env.get("LLMOPT_HOME") or ROOT / "build")
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    env["JUPYTER_PREFER_ENV_PATH"] = "1"  # the kernel of this Python, not one of the user's
    env["IPYTHONDIR"] = str(made / "ipython")
    profile = made / "ipython" / "profile_default" / "ipython_kernel_config.py"
    profile.parent.mkdir(parents=True, exist_ok=True)
    profile.write_text(PROFILE)
    env["MPLCONFIGDIR"] = str(made / "matplotlib")
    env["HF_HUB_OFFLINE"] = "1"  # nothing here comes from a model hub
    env["TQDM_DISABLE"] = "1"  # progress bars are for live runs; on a page they are noise
    return env


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT, help="where _build/html is made")
    parser.add_argument("--source", type=Path, default=ROOT, help="the book (for tests)")
    args = parser.parse_args()
    output = args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    command = [
        str(Path(sys.executable).parent / "jupyter-book"),
        "build",
        str(args.source.resolve()),
    ]
    command += ["--path-output", str(output), "-n", "-W", "--keep-going", "-q"]
    code = subprocess.run(command, cwd=args.source, env=environment()).returncode
    if code:
        # Sphinx warns about a page only when it reads it: without this, a second run would pass.
        shutil.rmtree(output / "_build" / ".doctrees", ignore_errors=True)
        print(f"The book has errors (above); notebook logs: {output}/_build/html/reports")
        return 1
    page = output / "_build" / "html" / "index.html"
    print(f"The book is ready after {time.monotonic() - start:.0f} s: {page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
