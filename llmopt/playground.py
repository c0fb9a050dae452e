"""A place to try pass lists by hand: widgets in a live notebook, chosen states on a static page.

`playground` needs a running kernel. `playground_states` shows the same views without one: what a
page of the book has in its place.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping

import ipywidgets as widgets
from IPython.display import HTML

from llmopt import display
from llmopt.config import PROTOCOLS, InputError, check_protocol

# Passes that are worth a button: what -Oz itself is made of, in about its order.
COMMON = (
    *("sroa<modify-cfg>", "early-cse", "simplifycfg", "instcombine<no-verify-fixpoint>"),
    *("tailcallelim", "reassociate", "loop-rotate", "licm", "indvars", "loop-deletion"),
    *("gvn", "sccp", "dse", "adce", "-Oz"),
)


class Playground(widgets.VBox):
    """The widgets and what they do. The text field `list` is the whole state of the list: buttons
    append to it, `undo` brings back what it held before, `clear` empties it."""

    def __init__(self, functions: Mapping[str, str], protocol: str):
        self._functions, self._past = dict(functions), []
        self.function = widgets.Dropdown(options=list(functions), description="Function")
        self.protocol = widgets.ToggleButtons(options=PROTOCOLS, value=protocol)
        self.list = widgets.Text(
            description="Pass list",
            placeholder="a click on a pass, or pass,pass,…",
            continuous_update=False,
            layout={"width": "100%"},
        )
        self.undo = widgets.Button(description="Undo", icon="undo", disabled=True)
        self.clear = widgets.Button(description="Clear", icon="trash")
        self.passes = {
            name: widgets.Button(
                description=name.partition("<")[0],
                tooltip=f"append {name}",
                layout={"width": "auto"},
            )
            for name in COMMON
        }
        self.view = widgets.HTML()
        for name, button in self.passes.items():
            button.on_click(lambda _, name=name: self._append(name))
        self.undo.on_click(self._undo)
        self.clear.on_click(lambda _: setattr(self.list, "value", ""))
        self.list.observe(self._remember, "value")
        for control in (self.function, self.protocol, self.list):
            control.observe(self._show, "value")
        wrap = {"flex_flow": "row wrap"}
        super().__init__(
            [
                widgets.HBox([self.function, self.protocol], layout=wrap),
                widgets.HBox(list(self.passes.values()), layout=wrap),
                widgets.HBox([self.list, self.undo, self.clear]),
                self.view,
            ]
        )
        self._show()

    def _append(self, name: str) -> None:
        typed = self.list.value.strip().rstrip(",")
        self.list.value = f"{typed},{name}" if typed else name

    def _remember(self, change: dict) -> None:
        self._past.append(change["old"])
        self.undo.disabled = False

    def _undo(self, _: object) -> None:
        self.list.value = self._past[-1]
        del self._past[-2:]  # the value that came back, and the one that `_remember` noted for it
        self.undo.disabled = not self._past

    def _show(self, _: object = None) -> None:
        name = self.function.value
        try:
            names = display.pass_list(self.list.value)
            view = display.effect(
                self._functions[name], self.protocol.value, names, name, graphs=True
            )
        except InputError as error:
            view = display.problem(error)
        self.view.value = view.data


def playground(functions: Mapping[str, str], protocol: str = "minsize") -> Playground:
    """Widgets for pass lists on functions (normalised IR by name): count, code and graph at once.

    Raises `InputError` on an unknown protocol and where there are no functions.
    """
    if not functions:
        raise InputError("no functions to play with: pass normalised IR by name (`ir.split`)")
    return Playground(functions, check_protocol(protocol))


def playground_states(text: str, protocol: str, lists: Iterable[str], title: str = "") -> HTML:
    """What the playground shows for chosen lists on one function, without a kernel: a line of
    counts a list, which unfolds to the code and the graphs.

    `lists` as people type them (`"sroa,gvn"`). Raises `InputError` on an unknown pass or protocol,
    where LLVM fails on the function, and where there are no lists.
    """
    views = [
        display.effect(text, protocol, display.pass_list(each), graphs=True, fold=True).data
        for each in lists
    ]
    if not views:
        raise InputError('no lists to show: pass at least one, such as "sroa,gvn"')
    head = f"<p><strong>{html.escape(title)}</strong></p>" if title else ""
    return HTML(head + "".join(views))
