"""A process for what may crash or hang the one that does it: a line of JSON in, a line of JSON out.

It runs a module as a program, which sets its own limits, and is started again when it dies. How it
died is not kept; `sandbox` has workers whose last words are results.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress


class Worker:
    """One process running `python -m module`, started by the first question. Not thread-safe."""

    def __init__(self, module: str) -> None:
        self.module = module
        self._process: subprocess.Popen | None = None

    def ask(self, question: object) -> object:
        """The answer to a question, both as JSON has them; None where the process died of it."""
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = subprocess.Popen(
                [sys.executable, "-m", self.module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        except BaseException:  # interrupted: the answer would be taken for the next one's
            self.close()
            raise
        if line.endswith(b"\n"):
            return json.loads(line)
        self.close()
        return None

    def close(self) -> None:
        """End the process; the next question starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            with suppress(BrokenPipeError):  # closing writes what was not read any more
                process.stdin.close()
            process.stdout.close()

    def __del__(self) -> None:  # the thread that asked is gone
        self.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
