"""C and C++ source files to unoptimised LLVM IR, through clang.

Covers finding a clang (`LLMOPT_CLANG`, else the one inside the `ziglang` package), running it under
a time limit, and leaving in the module only what the file itself defines: inline and template
functions of headers become declarations. The IR does not depend on where the file lies, on the day
or on the working directory. Bitcode, normalisation and splitting are not covered (`llvm`, `ir`).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

import psutil

from llmopt import config
from llmopt.config import InputError

LANGUAGES = {".c": "c", ".cc": "c++", ".cpp": "c++", ".cxx": "c++"}
SECONDS, PATIENCE = 60.0, 10  # for one file, of the processor; by the clock so many times as long
TARGET = "x86_64-linux-gnu"  # fixed: the same bytes on every machine
STANDARDS = {"c": "-std=gnu17", "c++": "-std=gnu++17"}

# What makes clang's IR the paper's "unoptimised" IR: -O0 without the `optnone` attribute that would
# forbid optimising it later, and none of the guards that zig switches on for debug builds.
FLAGS = (
    *("-target", TARGET, "-O0", "-Xclang", "-disable-O0-optnone", "-fdiscard-value-names"),
    *("-fno-sanitize=all", "-fno-stack-protector", "-fomit-frame-pointer"),
    # Line tables name the file of each definition; they are dropped again below.
    *("-gline-tables-only", "-S", "-emit-llvm", "-w"),
    *("-Wno-builtin-macro-redefined", '-D__DATE__="Jan  1 1970"', '-D__TIME__="00:00:00"'),
)
# C from before 1999 leaves out declarations and types; new compilers refuse that.
OLD_C = tuple(
    f"-Wno-error={name}"
    for name in (
        *("implicit-function-declaration", "implicit-int"),
        *("int-conversion", "incompatible-pointer-types"),
    )
)


@dataclass(frozen=True)
class Execution:
    """What became of one external program. `signal` is set when one ended it."""

    command: tuple[str, ...]
    returncode: int | None
    signal: int | None
    stderr: str
    seconds: float
    timeout: bool


@dataclass(frozen=True)
class Compilation:
    """What became of one file: `ir` (a module that defines the file's own functions), or `error`.

    `error` is one line, with file and line where clang gave them. `headers` counts the functions
    that were left out because a header defines them, or the compiler itself.
    """

    ok: bool
    ir: str | None
    error: str | None
    command: tuple[str, ...]
    seconds: float
    headers: int = 0


def execute(
    command: Sequence[str],
    seconds: float,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> Execution:
    """Run a program without a shell. Past `seconds` of the processor's time, or `PATIENCE` times as
    many by the clock, it is killed with all its children: a busy machine makes nothing fail."""
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # a process group of its own, to be killed as one
    )
    timeout, stderr = False, None
    try:
        while stderr is None:
            try:
                _, stderr = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                late = time.monotonic() - start >= PATIENCE * seconds
                if late or _processor_seconds(process.pid) >= seconds:
                    timeout = True
                    os.killpg(process.pid, signal.SIGKILL)
                    _, stderr = process.communicate()
    except BaseException:  # an interrupt: the group does not get the terminal's own
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
    code = process.returncode
    return Execution(
        command=tuple(command),
        returncode=code if code >= 0 else None,
        signal=-code if code < 0 else None,
        stderr=stderr.decode(errors="replace"),
        seconds=time.monotonic() - start,
        timeout=timeout,
    )


def _processor_seconds(pid: int) -> float:
    """What a process and the children that it still has have used."""
    try:
        parent = psutil.Process(pid)
        used = [one.cpu_times() for one in (parent, *parent.children(recursive=True))]
    except psutil.Error:  # one has just ended
        return 0.0
    return sum(time.user + time.system for time in used)


def _zig() -> Path | None:
    # The binary itself: `python -m ziglang` would start another Python for every file.
    try:
        import ziglang
    except ImportError:
        return None
    return Path(ziglang.__file__).parent / "zig"


@lru_cache
def _find(override: str | None) -> tuple[str, ...]:
    if override:
        path = shutil.which(override)
        if path is None:
            raise InputError(
                f"LLMOPT_CLANG={override}: no such program; name a clang or unset the variable"
            )
        return (path,)
    zig = _zig()
    if zig is None or not zig.exists():
        raise InputError(
            "no clang found: run `pip install ziglang==0.17.1`, or set LLMOPT_CLANG to a clang"
        )
    return (str(zig),)


def _driver(language: str) -> tuple[str, ...]:
    found = _find(os.environ.get("LLMOPT_CLANG"))
    if os.environ.get("LLMOPT_CLANG"):
        return found
    return (*found, "c++" if language == "c++" else "cc")


def _environment(folder: str) -> dict[str, str]:
    return os.environ | {
        "ZIG_LOCAL_CACHE_DIR": folder,  # holds every output: not to be kept
        "ZIG_GLOBAL_CACHE_DIR": str(config.home().absolute() / "zig-cache"),
        "LC_ALL": "C",  # messages in the language in which they are read below
        "SOURCE_DATE_EPOCH": "0",
    }


@lru_cache
def _version(driver: tuple[str, ...]) -> str:
    with tempfile.TemporaryDirectory(prefix="llmopt-") as folder:
        done = subprocess.run(
            [*driver, "--version"],
            capture_output=True,
            text=True,
            timeout=60,
            env=_environment(folder),
        )
    match = re.search(r"version (\S+)", done.stdout)
    if not match:
        raise InputError(f"{' '.join(driver)}: not a clang (no version); check LLMOPT_CLANG")
    return match[1]


def available() -> tuple[str, str]:
    """The compiler's path and clang's version; `InputError` says how to get one."""
    driver = _driver("c")
    return driver[0], _version(driver)


def compile(  # noqa: A001 - the module is the namespace
    path: Path,
    language: str | None = None,
    includes: Sequence[str] = (),
    defines: Sequence[str] = (),
    flags: Sequence[str] = (),
    cwd: Path | None = None,
    seconds: float = SECONDS,
) -> Compilation:
    """Compile one file. `path` and `includes` are relative to `cwd` (default: the file's folder).

    A `.ll` file passes through unchanged. What clang refuses comes back as `error`; a file that is
    missing or of an unknown kind, and a missing clang, raise `InputError`.
    """
    path = Path(path)
    root = Path(cwd).absolute() if cwd else path.absolute().parent
    path = root / path if cwd else path.absolute()
    if not path.is_file():
        raise InputError(f"{path}: no such file; check the path")
    if path.suffix.lower() == ".ll":
        return Compilation(True, path.read_text(errors="replace"), None, (), 0.0)
    language = language or LANGUAGES.get(path.suffix.lower())
    if language not in STANDARDS:
        raise InputError(f"{path}: not a C or C++ file; use one of {', '.join(LANGUAGES)} or .ll")
    name = os.path.relpath(path, root)  # relative, so that no folder's name reaches the IR
    name = f"./{name}" if name.startswith("-") else name
    with tempfile.TemporaryDirectory(prefix="llmopt-") as folder:
        out = Path(folder) / "out.ll"  # `-o -` would write a file called `-` with zig
        command = (
            *_driver(language),
            *FLAGS,
            STANDARDS[language],
            *(OLD_C if language == "c" else ()),
            f"-ffile-prefix-map={root}=.",
            *(f"-I{include}" for include in includes),
            *(f"-D{define}" for define in defines),
            *flags,
            *("-x", language, name, "-o", str(out)),
        )
        done = execute(command, seconds, root, _environment(folder))
        if done.timeout:
            return Compilation(
                False, None, f"{name}: compilation took over {seconds:g} s", command, done.seconds
            )
        if done.returncode != 0 or not out.exists():
            return Compilation(False, None, _first_error(done, name), command, done.seconds)
        text = out.read_text(errors="surrogateescape")
    ir, headers = own(text)
    return Compilation(True, ir, None, command, done.seconds, headers)


_ERROR = re.compile(
    r"^(?P<where>[^\s:][^:\n]*:\d+):(?:\d+:)? (?:fatal )?error: (?P<what>.+)$", re.M
)


def _first_error(done: Execution, name: str) -> str:
    match = _ERROR.search(done.stderr)
    if match:
        return f"{match['where']}: {match['what']}"
    if done.signal:
        return f"{name}: clang was ended by signal {done.signal}"
    lines = [line for line in done.stderr.splitlines() if "error" in line]
    return f"{name}: {lines[0].strip() if lines else f'clang ended with {done.returncode}'}"


_SYMBOL = r'@(?P<name>"[^"]*"|[-\w$.]+)'
_DEFINE = re.compile(rf"^define (?P<before>.*?){_SYMBOL}\(")
_FILE = re.compile(r'^(!\d+) = !DIFile\(filename: "((?:[^"\\]|\\.)*)"', re.M)
_SUBPROGRAM = re.compile(r"^(!\d+) = .*?!DISubprogram\(.*?\bfile: (!\d+)", re.M)
_ALIAS = re.compile(rf"^@.* (?:alias|ifunc) .*{_SYMBOL}$", re.M)
_ATTACHMENT = re.compile(r",? ![a-z][\w.]* !\d+")
_SCOPE = "call void @llvm.experimental.noalias.scope.decl(metadata "  # metadata as a call
_FROM_HEADERS = re.compile(r"\b(?:linkonce|linkonce_odr|available_externally)\b")
_LINKAGE = re.compile(
    r"\b(?:internal|private|weak|weak_odr|linkonce|linkonce_odr|available_externally|dso_local) "
)
# What clang makes for constructors of globals is nobody's source.
_COMPILER_MADE = re.compile(r'^"?(?:__cxx_global_var_init|__cxx_global_array_dtor|_GLOBAL__)')
_HEADER_SUFFIXES = {"", ".h", ".hh", ".hpp", ".hxx", ".h++", ".inl", ".ipp", ".tcc", ".tpp"}


def own(text: str) -> tuple[str, int]:
    """Clang's module with the functions of headers as declarations, and how many they were.

    A function is the file's own unless its linkage says that any file may hold a copy (`inline` and
    templates in C++), its definition lies in a header, or the compiler made it. Headers are told by
    their suffix, so an included `.c` file and the `#line`s of a generated parser count as own. The
    metadata goes: what is left is what clang gives without `-g`.
    """
    files = dict(_FILE.findall(text))
    main = re.search(r"!DICompileUnit\(.*?\bfile: (!\d+)", text)
    main_file = files.get(main[1]) if main else None
    headers = {
        node
        for node, file in _SUBPROGRAM.findall(text)
        if (name := files.get(file, "")) != main_file
        and PurePosixPath(name).suffix.lower() in _HEADER_SUFFIXES
    }
    aliased = {match["name"] for match in _ALIAS.finditer(text)}  # an alias needs a definition
    kept: list[str] = []
    nodes: list[str] = []
    left_out, skipping = 0, False
    for line in text.split("\n"):
        if skipping:
            skipping = line != "}"
        elif line.startswith("!"):
            nodes.append(line)
        elif _SCOPE in line:
            continue
        elif match := _DEFINE.match(line):
            debug = re.search(r" !dbg (!\d+)", line)
            line = _ATTACHMENT.sub("", line)
            foreign = main_file is not None and (
                debug is None
                or debug[1] in headers
                or _FROM_HEADERS.search(match["before"])
                or _COMPILER_MADE.match(match["name"])
            )
            if foreign and match["name"] not in aliased:
                left_out, skipping = left_out + 1, True
                line = _declaration(line, match)
            kept.append(line)
        else:
            kept.append(_ATTACHMENT.sub("", line) if line.startswith("  ") else line)
    return "\n".join(kept + _operands("\n".join(kept), nodes)), left_out


def _declaration(line: str, match: re.Match[str]) -> str:
    depth = 0
    for position in range(match.end() - 1, len(line)):
        depth += {"(": 1, ")": -1}.get(line[position], 0)
        if depth == 0:
            break
    before = _LINKAGE.sub("", match["before"])
    return f"declare {before}@{match['name']}{line[match.end() - 1 : position + 1]}\n"


def _operands(body: str, nodes: list[str]) -> list[str]:
    """The metadata that calls still name as an operand, and what that names in turn."""
    wanted = set(re.findall(r"metadata (!\d+)", body))
    by_name = {line.split(" ", 1)[0]: line for line in nodes}
    queue = list(wanted)
    while queue:
        for name in re.findall(r"!\d+", by_name.get(queue.pop(), "").partition(" = ")[2]):
            if name not in wanted:
                wanted.add(name)
                queue.append(name)
    return [by_name[name] for name in by_name if name in wanted]
