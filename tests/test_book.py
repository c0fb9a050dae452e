"""The rendered book, at smoke scale: every notebook runs, every link holds, every page works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from bs4 import BeautifulSoup

from llmopt.config import ROOT

TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"]] + [c["file"] for part in TOC["parts"] for c in part["chapters"]]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
DRIVER = shutil.which("chromedriver")
INSTALL = "no Chromium with chromedriver here: apt-get install chromium chromium-driver"

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("book")]


SHOWN = {"stream", "display_data", "execute_result"}
# What JupyterLab does with "Restart kernel and run all cells", started from the folder it runs in.
RUN_ALL = """
import sys, nbformat, nbclient
notebook = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": "."}}).execute()
"""


def untidy() -> set[str]:
    """What git sees that is neither committed nor ignored."""
    command = ["git", "status", "--porcelain", "--untracked-files=all"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return set(done.stdout.splitlines())


@pytest.fixture(scope="session")
def before() -> set[str]:
    return untidy()


@pytest.fixture(scope="session")
def alone(before, tmp_path_factory) -> dict[str, str]:
    """How each notebook ended that ran by itself: from the repository's root, the last page first,
    so that none finds what the pages before it would have made. `html` then runs them again, in
    order and from `notebooks/`."""
    room = str(tmp_path_factory.mktemp("jupyter"))
    env = os.environ | {"LLMOPT_SCALE": "smoke", "IPYTHONDIR": room, "MPLCONFIGDIR": room}
    ended = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"), reverse=True):
        command = [sys.executable, "-c", RUN_ALL, str(path)]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        ended[path.stem] = done.stderr[-2000:] if done.returncode else "ok"
    return ended


@pytest.fixture(scope="session")
def html(alone) -> Path:
    """The book, rendered by the command behind `make book`. This runs every notebook."""
    output = ROOT / "build" / "book-smoke"
    command = [sys.executable, str(ROOT / "book" / "build.py"), "--output", str(output)]
    done = subprocess.run(
        command, env=os.environ | {"LLMOPT_SCALE": "smoke"}, capture_output=True, text=True
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return output / "_build" / "html"


def pages(html: Path) -> list[Path]:
    return [p for p in sorted(html.rglob("*.html")) if html / "_static" not in p.parents]


def soup(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(), "html.parser")


def test_every_page_is_rendered(html):
    assert [page for page in PAGES if not (html / f"{page}.html").exists()] == []
    assert (html / "index.html").exists()


def test_notebooks_run_by_themselves_and_leave_nothing_behind(before, alone, html):
    assert alone == dict.fromkeys(sorted(alone, reverse=True), "ok")
    assert untidy() == before, "a notebook wrote outside of an ignored folder"


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("notebooks/")])
def test_solutions_ran_with_their_page(html, page):
    """Each code cell between `solution-start` and `solution-end`, as the book's build ran it."""
    ran = json.loads((html.parent / "jupyter_execute" / f"{page}.ipynb").read_text())
    ran = {cell["id"]: cell for cell in ran["cells"]}
    inside, checked = False, 0
    for cell in json.loads((ROOT / f"{page}.ipynb").read_text())["cells"]:
        if cell["cell_type"] == "markdown":
            gates = re.findall(r"\{solution-(start|end)\}", "".join(cell["source"]))
            inside = gates[-1] == "start" if gates else inside
        elif inside:
            twin = ran[cell["id"]]
            assert "".join(twin["source"]) == "".join(cell["source"])
            assert twin["execution_count"] and twin["outputs"], f"{cell['id']} shows nothing"
            assert {out["output_type"] for out in twin["outputs"]} <= SHOWN, cell["id"]
            checked += 1
    assert checked


def test_links_inside_the_book_lead_somewhere(html):
    ids: dict[Path, set[str]] = {}
    broken = []
    for path in pages(html):
        for tag in soup(path).select("a[href], img[src], script[src], link[href]"):
            target = tag.get("href") or tag.get("src")
            url = urlsplit(target)
            if url.scheme or url.netloc or target == "#":
                continue
            other = (path.parent / unquote(url.path)).resolve() if url.path else path
            if not other.exists():
                broken.append(f"{path.relative_to(html)}: {target}")
            elif url.fragment and other.suffix == ".html":
                if other not in ids:
                    ids[other] = {tag["id"] for tag in soup(other).select("[id]")}
                if unquote(url.fragment) not in ids[other]:
                    broken.append(f"{path.relative_to(html)}: {target}")
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(html):
    remote = []
    for path in pages(html):
        page = soup(path)
        for tag in page.select("script[src], img[src], iframe[src], link[href]"):
            target = tag.get("src") or tag.get("href")
            if urlsplit(target).netloc and tag.get("rel") != ["canonical"]:
                remote.append(f"{path.relative_to(html)}: {target}")
        for script in page.select("script:not([src])"):
            if "://" in (script.string or ""):
                remote.append(f"{path.relative_to(html)}: {script.string[:80]}")
    assert remote == []


def test_pages_hold_no_error_and_no_empty_widget(html):
    for page in PAGES:
        text = (html / f"{page}.html").read_text()
        assert "Traceback (most recent call last)" not in text, page
        assert "application/vnd.jupyter.widget-view+json" not in text, page
        for figure in soup(html / f"{page}.html").select("img"):
            assert figure.get("alt", "").strip(), f"{page}: a figure has no alt text"
            assert not re.match(r"(\.\./)*_(images|static)/", figure["alt"]), (
                f"{page}: {figure['alt']}"
            )


def test_status_lists_every_notebook(html):
    rows = soup(html / "book/status.html").select("table tbody tr")
    ran = {row.select_one("td").get_text(strip=True) for row in rows}
    assert ran == {page for page in PAGES if page.startswith("notebooks/")}


# -- the book in a browser -------------------------------------------------------------------------


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        """Requests are not news."""


@pytest.fixture(scope="session")
def site(html):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(html)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    if not (CHROMIUM and DRIVER):
        pytest.skip(INSTALL)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = (
        "headless=new no-sandbox disable-gpu disable-dev-shm-usage disable-quic no-first-run "
        "disable-background-networking disable-component-update disable-sync"
    )
    for flag in flags.split():
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(60)
    driver.set_script_timeout(30)
    yield driver
    driver.quit()


def wait(browser, script: str):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20).until(lambda driver: driver.execute_script(script))


@pytest.fixture
def at_width(browser, request):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": request.param, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.get_log("browser")  # forget what an earlier page said
    return request.param


@pytest.mark.browser
@pytest.mark.parametrize("at_width", [390, 1280], indirect=True)
@pytest.mark.parametrize("page", PAGES)
def test_page_works(site, browser, at_width, page):
    browser.get(f"{site}/{page}.html")
    wait(browser, "return document.readyState === 'complete'")
    if browser.execute_script("return document.querySelector('.math') !== null"):
        wait(browser, "return document.querySelector('mjx-container') !== null")
        assert not browser.execute_script("return document.querySelector('mjx-merror') !== null")
    # Off-screen images load late: ask for each of them before looking at any.
    browser.execute_script("for (const i of document.images) i.loading = 'eager'")
    wait(browser, "return [...document.images].every(i => i.complete)")
    dead = "return [...document.images].filter(i => !i.naturalWidth).map(i => i.src)"
    assert browser.execute_script(dead) == []
    overflow = "return document.documentElement.scrollWidth - window.innerWidth"
    assert browser.execute_script(overflow) <= 0, "the page scrolls sideways"
    remote = "return performance.getEntriesByType('resource').map(e => e.name)"
    assert [url for url in browser.execute_script(remote) if not url.startswith(site)] == []
    errors = [e["message"] for e in browser.get_log("browser") if e["level"] == "SEVERE"]
    assert errors == []


@pytest.mark.browser
@pytest.mark.parametrize("at_width", [390, 1280], indirect=True)
def test_search_finds_a_word(site, browser, at_width):
    browser.get(f"{site}/search.html?q=autotuner")
    found = wait(
        browser, "return [...document.querySelectorAll('#search-results li a')].map(a => a.href)"
    )
    assert any("glossary" in link for link in found)
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []


# -- for every reader ------------------------------------------------------------------------------

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
AXE = """
const [rules, done] = [arguments[0], arguments[arguments.length - 1]];
axe.run(document, {runOnly: rules, resultTypes: ["violations"]}).then(
  found => done(found.violations.flatMap(rule => rule.nodes.map(
    node => `${rule.id}: ${node.target}: ${node.failureSummary.split("\\n").pop().trim()}`))),
  error => done([`axe: ${error}`]));
"""
# Solutions, code and views that are folded count as much as what is open.
UNFOLD = """
document.querySelectorAll("details").forEach(each => each.open = true);
document.querySelectorAll(".toggle-hidden").forEach(each => each.classList.remove("toggle-hidden"));
"""
FOCUS = """
const [wanted, here] = [arguments[0], document.activeElement];
const [box, look] = [here.getBoundingClientRect(), getComputedStyle(here)];
return {
  what: (here.outerHTML || "").slice(0, 160),
  is: Object.keys(wanted).filter(name => here.matches(wanted[name])),
  seen: box.width > 0 && box.height > 0 && look.visibility === "visible",
  marked: look.outlineStyle !== "none" || look.boxShadow !== "none",
};
"""


def theme(browser, scheme: str) -> None:
    """Light or dark as the reader's system has it, without motion: colours are there at once."""
    features = {"prefers-color-scheme": scheme, "prefers-reduced-motion": "reduce"}
    media = [{"name": name, "value": value} for name, value in features.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})


def press(browser, *keys: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    chain = ActionChains(browser)
    for key in keys[:-1]:
        chain.key_down(key)
    chain.send_keys(keys[-1])
    for key in keys[:-1]:
        chain.key_up(key)
    chain.perform()


@pytest.mark.browser
@pytest.mark.parametrize("at_width", [390, 1280], indirect=True)
@pytest.mark.parametrize("page", [*PAGES, "search", "genindex"])
def test_page_keeps_to_wcag_in_both_themes(site, browser, at_width, page):
    theme(browser, "light")
    browser.get(f"{site}/{page}.html?highlight=model")  # as one comes from a search
    wait(browser, "return document.readyState === 'complete'")
    wait(browser, "return document.documentElement.dataset.theme === 'light'")
    browser.execute_script(UNFOLD)
    browser.execute_script(files("axe_core_python").joinpath("axe.min.js").read_text())
    assert browser.execute_async_script(AXE, RULES) == []
    theme(browser, "dark")
    wait(browser, "return document.documentElement.dataset.theme === 'dark'")
    assert browser.execute_async_script(AXE, RULES) == []
    overflow = "return document.documentElement.scrollWidth - window.innerWidth"
    assert browser.execute_script(overflow) <= 0, "unfolded, the page scrolls sideways"


@pytest.mark.browser
def test_the_theme_switch_overrules_the_system(site, browser):
    theme(browser, "light")
    browser.get(f"{site}/book/glossary.html")
    now = "return document.documentElement.dataset.theme"
    seen = []
    for _ in range(3):
        browser.execute_script("document.querySelector('.theme-switch-button').click()")
        seen.append(browser.execute_script(now))
    browser.execute_script("localStorage.clear()")
    assert {"light", "dark"} == set(seen)


@pytest.mark.browser
@pytest.mark.parametrize("at_width", [1280], indirect=True)
def test_tab_goes_everywhere(site, browser, at_width):
    browser.get(f"{site}/notebooks/01_ir_and_code_size.html")
    wait(browser, "return document.readyState === 'complete'")
    wanted = {
        "skip link": "#pst-skip-link a, a#pst-skip-link, .skip-link",
        "home": "a.navbar-brand",
        "search": ".search-button__button, .search-button-field",
        "theme": ".theme-switch-button",
        "page list": ".bd-sidebar-primary nav a",
        "this page's list": ".bd-sidebar-secondary nav a",
        "text": ".bd-article p a",
        "listing": ".bd-article pre[tabindex='0']",
        "hidden code": ".bd-article summary",
        "solution": "button.toggle-button",
        "next page": "a.right-next",
    }
    stops = []
    for _ in range(400):
        press(browser, "\ue004")
        stop = browser.execute_script(FOCUS, wanted)
        if stop["what"].startswith("<body"):  # all round
            break
        stops.append(stop)
    assert stops[0]["is"] == ["skip link"]
    assert sorted(wanted) == sorted({name for stop in stops for name in stop["is"]})
    assert [stop["what"] for stop in stops if not (stop["seen"] and stop["marked"])] == []


@pytest.mark.browser
@pytest.mark.parametrize("at_width", [1280], indirect=True)
def test_keys_alone_skip_search_and_unfold(site, browser, at_width):
    from selenium.webdriver.common.keys import Keys

    browser.get(f"{site}/notebooks/01_ir_and_code_size.html")
    wait(browser, "return document.readyState === 'complete'")
    press(browser, Keys.TAB)
    press(browser, Keys.ENTER)
    press(browser, Keys.TAB)
    inside = "return document.querySelector('main').contains(document.activeElement)"
    assert browser.execute_script(inside), "the skip link leads into the page"

    fold = "const fold = document.querySelector('.solution.dropdown'); "
    shown = fold + "return fold.querySelector('section').getBoundingClientRect().height > 0"
    assert not browser.execute_script(shown)
    browser.execute_script(fold + "fold.querySelector('button.toggle-button').focus()")
    press(browser, Keys.ENTER)
    assert wait(browser, shown)

    press(browser, Keys.CONTROL, "k")
    field = "return document.activeElement.matches('input[type=search]')"
    assert wait(browser, field)
    press(browser, Keys.ESCAPE)
    assert wait(browser, field.replace("return ", "return !"))
    press(browser, Keys.CONTROL, "k")
    wait(browser, field)
    press(browser, "basic block")
    press(browser, Keys.ENTER)
    found = "return [...document.querySelectorAll('#search-results li a')].map(a => a.href)"
    assert any("glossary" in link for link in wait(browser, found))
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []


@pytest.mark.browser
@pytest.mark.parametrize("at_width", [390], indirect=True)
def test_a_phone_has_the_list_of_pages(site, browser, at_width):
    browser.get(f"{site}/book/glossary.html")
    wait(browser, "return document.readyState === 'complete'")
    link = "const link = document.querySelector('.bd-sidebar-primary nav a'); "
    seen = link + "const box = link.getBoundingClientRect(); return box.left >= 0 && box.width > 0"
    assert not browser.execute_script(seen)
    for _ in range(10):
        press(browser, "\ue004")
        if browser.execute_script(FOCUS, {"menu": ".primary-toggle"})["is"]:
            break
    press(browser, "\ue007")
    assert wait(browser, seen)


# -- the page cache --------------------------------------------------------------------------------

CONFIG = f"""\
title: t
only_build_toc_files: true
execute: {{execute_notebooks: cache, show_tb: true}}
sphinx:
  local_extensions: {{keyed_cache: {ROOT / "book" / "_ext"}}}
"""


def write_notebook(path: Path, *cells: str) -> None:
    body = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {}, "outputs": [],
         "execution_count": None, "source": text}
        for i, text in enumerate(cells)
    ]  # fmt: skip
    body.insert(0, {"cell_type": "markdown", "id": "m", "metadata": {}, "source": "# Title"})
    meta = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    path.write_text(
        json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": meta, "cells": body})
    )


@pytest.fixture
def tiny(tmp_path) -> Path:
    """A book of two pages over a package of its own; each run of a page leaves a mark in `runs`."""
    (tmp_path / "_config.yml").write_text(CONFIG)
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: a\nchapters: [{file: b}]\n")
    (tmp_path / "requirements.lock").write_text("")
    for name in ("data", "results", "models"):
        (tmp_path / name).mkdir()
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    package = tmp_path / "llmopt"
    package.mkdir()
    (package / "__init__.py").write_text("")
    shutil.copy(ROOT / "llmopt" / "config.py", package)
    (package / "base.py").write_text("ONE = 1\n")
    (package / "x.py").write_text('"""Doc."""\nVALUE = 1\n')
    (package / "y.py").write_text("from llmopt.base import ONE\nVALUE = ONE\n")
    for page, module in (("a", "x"), ("b", "y")):
        mark = f"open({str(tmp_path / 'runs')!r}, 'a').write({page!r})"
        write_notebook(tmp_path / f"{page}.ipynb", f"from llmopt import {module}\n{mark}")
    return tmp_path


def build(book: Path, scale: str = "smoke") -> str:
    """Build it and say which pages ran."""
    (book / "runs").write_text("")
    env = os.environ | {"PYTHONPATH": str(book), "LLMOPT_SCALE": scale}
    command = [str(Path(sys.executable).parent / "jupyter-book"), "build", str(book), "-n", "-W"]
    done = subprocess.run(command, cwd=book, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return "".join(sorted((book / "runs").read_text()))


def test_a_page_runs_again_when_what_it_uses_changes(tiny):
    assert build(tiny) == "ab"
    assert build(tiny) == ""
    (tiny / "llmopt" / "x.py").write_text('"""Other words."""\nVALUE = 2\n')
    assert build(tiny) == "a"
    (tiny / "llmopt" / "base.py").write_text("ONE = 2\n")  # y imports it
    (tiny / "llmopt" / "x.py").write_text('"""Words alone."""\nVALUE = 2\n')
    assert build(tiny) == "b"
    assert build(tiny, "classroom") == "ab"
    assert build(tiny) == "", "going back to a scale runs nothing"
    (tiny / "data" / "manifest.json").write_text("{}")
    assert build(tiny) == "ab"


def test_a_failing_notebook_fails_the_build_each_time(tmp_path):
    (tmp_path / "_config.yml").write_text(CONFIG)
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: a\n")
    write_notebook(tmp_path / "a.ipynb", "1 + 1", "raise RuntimeError('out of cheese')")
    command = [sys.executable, str(ROOT / "book" / "build.py")]
    command += ["--source", str(tmp_path), "--output", str(tmp_path)]
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1
        assert "RuntimeError" in done.stderr and "out of cheese" in done.stderr
    assert list((tmp_path / "_build" / "html" / "reports").glob("*.log"))


def test_a_cell_has_no_time_limit_at_the_scales_that_take_hours(tmp_path):
    limited = CONFIG.replace("cache, ", "cache, timeout: 2, ")
    (tmp_path / "_config.yml").write_text(limited.replace("keyed_cache:", "long_cells:"))
    (tmp_path / "_toc.yml").write_text("format: jb-book\nroot: a\n")
    write_notebook(tmp_path / "a.ipynb", "import time\ntime.sleep(4)")
    command = [sys.executable, str(ROOT / "book" / "build.py")]
    command += ["--source", str(tmp_path), "--output", str(tmp_path)]
    for scale, code in (("smoke", 1), ("reference", 0)):
        env = os.environ | {"LLMOPT_SCALE": scale}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == code, done.stdout + done.stderr
        assert ("CellTimeoutError" in done.stderr) == bool(code)
