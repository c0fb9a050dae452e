"""No time limit for a cell at the scales that take hours.

At `smoke` and `classroom` a cell that runs into the `timeout` of `_config.yml` hangs. At
`reference` one cell compiles the corpus for half an hour and another trains for three; whoever
stops the book there loses nothing, since each stage goes on where it was.
"""

from __future__ import annotations

from llmopt import config

SHORT = ("smoke", "classroom")


def lift(app, settings) -> None:
    if config.scale().name not in SHORT:
        settings.nb_execution_timeout = -1


def setup(app) -> dict:
    app.connect("config-inited", lift)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
