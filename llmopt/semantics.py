"""Does code still mean the same? Two versions of a function run on the same arguments and memory.

That code compiles says nothing about what it computes. Here a function and its rivals are compiled
in a JIT and called on the same inputs, in a process that has nothing to lose: limited in memory and
time, unable to write files, forked anew for each input. What is compared is the value returned and
all memory: buffers behind pointers, globals, and a digest of the calls that were made. Functions
called from outside are stubs that record their arguments and answer by them, so no foreign code
runs. Inputs on which the original itself faults or does not end say nothing and are not counted;
neither are those on which LLVM's own result differs (`against`): there the function's behaviour is
undefined, or hangs on addresses or on what LLVM knows of a callee.

Equal on a few inputs is no proof. Different on one is.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import re
import resource
import signal
import struct
import sys
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from llmopt import ir
from llmopt.worker import Worker

SECONDS, RUN_SECONDS = 20.0, 0.5  # for one function, and for one input
MEMORY_MB = 1024
SLOT = 4096  # bytes behind each pointer and global
ARGUMENT, RESULT, TRACE = 16, 512, 1024  # in the first slot: size of each, and where they lie
MOST = RESULT // ARGUMENT  # arguments
MEMORY = "llmopt.memory"  # the first slot, as a global
MIXER = 0x5851F42D4C957F2D  # an odd number, after Knuth
STYLES = ("zeros", "small numbers", "pointers", "text", "anything")
INPUTS = tuple((style, seed) for seed in range(3) for style in STYLES)
LEAST = 3  # inputs that have to say something

NOT_TESTABLE = (
    (r"\basm\b", "inline assembly"),
    (r"(?m)^define [^\n]*\(([^()]|\([^()]*\))*\.\.\.\)", "a variable number of arguments"),
    (r"\bbyval\(|\binalloca\(|\bpreallocated\(", "an argument passed as a copy"),
    (r"(?m)^@[^\n]* thread_local", "a thread's own global"),
    (r"@llvm\.(coro|gc|eh\.sjlj|experimental\.deoptimize)", "an intrinsic that needs a runtime"),
)
_DECLARED = re.compile(r'^declare [^@\n]*(@(?:"[^"]*"|[-\w$.]+))\(', re.MULTILINE)
_ALLOCA = re.compile(r"^(%[-\w$.]+) = alloca ([^,]+|[\[{<].*[\]}>])(?:, align \d+)?$")
RELEASE = ("free", "_ZdlPv", "_ZdaPv")  # nothing happens where they are given null


@dataclass(frozen=True)
class Verdict:
    """`status` is "equal", "differs" or "not testable", the last with its reason in `why`; `inputs`
    is how many said something. `example` is an input on which the two differ, cut down: the
    arguments, and what came of them in the original and in the other."""

    status: str
    inputs: int = 0
    why: str = ""
    example: dict = field(default_factory=dict)


def against(
    original: str, reference: str, others: Sequence[str]
) -> tuple[Verdict, tuple[Verdict, ...]]:
    """Verdicts on `reference`, which is what LLVM made of the function `original`, and on others
    that claim to be the same; all normalised IR of one definition of one name.

    The others are judged on the inputs on which original and reference agree.
    """
    for text in (original, reference, *others):
        if why := _why_not(text):
            verdict = Verdict("not testable", why=why)
            return verdict, (verdict,) * len(others)
    found = shared().ask([original, reference, *others])
    if "why" in found:
        verdict = Verdict("not testable", why=found["why"])
        return verdict, (verdict,) * len(others)
    control, *rest = found["agree"]  # for each input: None where the original did not end
    sound = [one is not None for one in control]
    firm = [bool(one) for one in control]
    examples = found["examples"]
    return (
        _verdict(control, sound, examples[0], "the original faults or does not end"),
        tuple(
            _verdict(own, firm, example, "LLVM's own result differs")
            for own, example in zip(rest, examples[1:], strict=True)
        ),
    )


def _why_not(text: str) -> str:
    """Why a function cannot be tested; empty where it may be."""
    for pattern, why in NOT_TESTABLE:
        if re.search(pattern, text):
            return why
    # Each version has stubs of its own, at addresses of their own.
    for name in _DECLARED.findall(text):
        if re.search(re.escape(name) + r"(?![-\w$.(])", text):
            return "the address of a function as a value"
    return ""


def _verdict(agree: list, counted: list[bool], example: dict | None, why: str) -> Verdict:
    told = [one for one, counts in zip(agree, counted, strict=True) if counts]
    if len(told) < LEAST:
        return Verdict("not testable", len(told), why)
    if all(told):
        return Verdict("equal", len(told))
    first = next(i for i, (one, c) in enumerate(zip(agree, counted, strict=True)) if c and not one)
    return Verdict("differs", len(told), example=(example or {}).get(str(first), {}))


# --- the process that runs things ----------------------------------------------------------------


_LOCAL = threading.local()


def shared() -> Worker:
    """This thread's own process."""
    if not hasattr(_LOCAL, "worker"):
        _LOCAL.worker = Worker("llmopt.semantics")
    return _LOCAL.worker


def _main() -> None:
    import llvmlite.binding as jit

    jit.initialize_native_target()
    jit.initialize_native_asmprinter()
    for line in sys.stdin.buffer:
        answer = _in_child(partial(_compare, jit, json.loads(line)), SECONDS, files=False)
        sys.stdout.buffer.write((answer or b'{"why": "LLVM dies on it"}') + b"\n")
        sys.stdout.buffer.flush()


def _in_child(work, seconds: float, files: bool = True) -> bytes:
    """What `work` returns (bytes), or nothing where it dies or takes too long."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(out)
            if not files:
                resource.setrlimit(resource.RLIMIT_AS, (MEMORY_MB << 20,) * 2)
                resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM ends what nobody catches
            os.write(into, work())
        finally:
            os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return answer


def _compare(jit, texts: list[str]) -> bytes:
    try:
        versions = [Version(jit, text) for text in texts]
    except RuntimeError as error:  # llvmlite's, for text that is no module
        return json.dumps({"why": f"no module: {str(error).splitlines()[0]}"}).encode()
    if len(versions[0].layout[0]) > MOST:
        return json.dumps({"why": f"more than {MOST} arguments"}).encode()
    if len({version.layout[0] for version in versions}) > 1:
        return json.dumps({"why": "another signature"}).encode()
    names = {name for version in versions for name in version.layout[1]}
    arena = Arena((versions[0].layout[0], tuple(sorted(names))))
    for version in versions:
        version.connect(arena)
    agree = [[] for _ in texts[1:]]
    examples: list[dict] = [{} for _ in texts[1:]]
    for number, (style, seed) in enumerate(INPUTS):
        given = arena.fill(style, seed)
        ends = _outcomes(arena, given, versions)
        for i, end in enumerate(ends[1:]):
            agree[i].append(None if ends[0] is None else end == ends[0])
            if agree[i][-1] is False and not examples[i]:
                found = _reduce(arena, given, versions[0], versions[i + 1])
                examples[i][str(number)] = {"memory": style} | found
    return json.dumps({"agree": agree, "examples": examples}).encode()


def _outcomes(arena: Arena, given: bytes, versions: Sequence[Version]) -> list[bytes | None]:
    """The memory after each version's call, the result in it; None for one that did not end."""

    def run(version: Version) -> bytes:
        arena.write(given)
        version.call(arena.address)
        return arena.read()

    return [_in_child(partial(run, version), RUN_SECONDS) or None for version in versions]


def _reduce(arena: Arena, given: bytes, original: Version, other: Version) -> dict:
    """The input with as many arguments zero as can be, and what both make of it."""
    kinds = original.layout[0]
    ends = _outcomes(arena, given, (original, other))
    for i, kind in enumerate(kinds):
        if kind == "ptr":
            continue
        at = i * ARGUMENT
        smaller = given[:at] + bytes(ARGUMENT) + given[at + ARGUMENT :]
        tried = _outcomes(arena, smaller, (original, other))
        if tried[0] is not None and tried[0] != tried[1]:
            given, ends = smaller, tried

    def shown(end: bytes | None) -> dict | str:
        if end is None:
            return "faults or does not end"
        changed = sum(end[n] != given[n] for n in range(SLOT, len(end)))
        return {"result": end[RESULT : RESULT + 16].hex(), "bytes written": changed}

    arguments = [given[i * ARGUMENT :][:8].hex() for i in range(len(kinds))]
    return {"arguments": arguments, "original": shown(ends[0]), "other": shown(ends[1])}


# --- one function in the JIT ---------------------------------------------------------------------

Layout = tuple[tuple[str, ...], tuple[str, ...]]  # types of the parameters, names of the globals


class Version:
    """A function compiled, with a wrapper that takes its arguments from memory and puts its result
    there, and stubs for what it calls."""

    def __init__(self, jit, text: str):
        triple = jit.get_default_triple()
        head = f'target triple = "{triple}"\n'
        known = jit.parse_assembly(head + ir.module_text(text, "stripped"))
        [function] = [one for one in known.functions if not one.is_declaration]
        called = [
            one
            for one in known.functions
            if one.is_declaration and not one.name.startswith("llvm.")
        ]
        self.layout: Layout = (
            tuple(str(one.type) for one in function.arguments),
            tuple(sorted(one.name for one in known.global_variables if one.is_declaration)),
        )
        parts = _parts(text, {one.name for one in called})
        parts += [_stub(one) for one in called]
        parts.append(_wrapper(function, text))
        module = jit.parse_assembly(head + ir.module_text("\n".join(parts) + "\n", "stripped"))
        module.verify()
        self.globals = [one for one in module.global_variables if one.is_declaration]
        machine = jit.Target.from_triple(triple).create_target_machine(opt=0)
        self.engine = jit.create_mcjit_compiler(module, machine)

    def connect(self, arena: Arena) -> None:
        """Give the globals their memory, and compile."""
        for one in self.globals:
            self.engine.add_global_mapping(one, arena.place(one.name))
        self.engine.finalize_object()
        address = self.engine.get_function_address("llmopt.call")
        self.call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)


def _parts(text: str, stubbed: set[str]) -> list[str]:
    """The module's lines without declarations that get stubs; what must not be reached traps, and
    local memory begins as zeros."""
    lines = [f"@{MEMORY} = external global i8"]
    for line in text.splitlines():
        if line.startswith("declare ") and ir.symbol(line) in stubbed:
            continue
        lines += ["call void @llvm.trap()"] if line == "unreachable" else []
        lines.append(line)
        # Stubs write nothing: what a callee would have filled in is zero, not whatever was there.
        if local := _ALLOCA.match(line):
            lines.append(f"store {local[2]} zeroinitializer, ptr {local[1]}")
    declared = any(line.startswith("declare ") and "@llvm.trap(" in line for line in lines)
    return lines if declared else [*lines, "declare void @llvm.trap()"]


def _signature(function) -> tuple[str, list[str]]:
    """The types of a function's result and parameters (`...` at the end, where it takes more)."""
    kind = str(function.global_value_type)
    start = end = len(kind) - 1  # of the parenthesis that closes the parameters
    depth = 0
    while start == end or depth:
        depth += {")": 1, "(": -1}.get(kind[start], 0)
        start -= 1
    parameters, depth = [""], 0
    for letter in kind[start + 2 : end]:
        depth += {"(": 1, "{": 1, "[": 1, "<": 1, ")": -1, "}": -1, "]": -1, ">": -1}.get(letter, 0)
        if letter == "," and not depth:
            parameters.append("")
        else:
            parameters[-1] += letter
    return kind[: start + 1].strip(), [one.strip() for one in parameters if one.strip()]


def _wrapper(function, text: str) -> str:
    """IR that calls the function on what lies in memory."""
    returned, parameters = _signature(function)
    body, passed = [], []
    for i, (kind, argument) in enumerate(zip(parameters, function.arguments, strict=True)):
        words = {str(one, "ascii") for one in argument.attributes} & {"signext", "zeroext"}
        body += [
            f"%p{i} = getelementptr i8, ptr %m, i64 {i * ARGUMENT}",
            f"%a{i} = load {kind}, ptr %p{i}, align 1",
        ]
        passed.append(" ".join([kind, *words, f"%a{i}"]))
    header = next(line for line in text.splitlines() if line.startswith("define "))
    convention = re.search(r"\b(fastcc|coldcc|cc \d+) ", header.split("@")[0])
    how = f"{convention[0]}{returned}" if convention else returned
    call = f'call {how} @"{function.name}"({", ".join(passed)})'
    if returned == "void":
        body.append(call)
    else:
        body += [
            f"%r = getelementptr i8, ptr %m, i64 {RESULT}",
            f"%x = {call}",
            f"store {returned} %x, ptr %r, align 1",
        ]
    return "\n".join(["define void @llmopt.call(ptr %m) {", *body, "ret void", "}"])


def _stub(function) -> str:
    """A definition that mixes its name and arguments into the trace, and answers by the trace."""
    returned, parameters = _signature(function)
    body = [
        f"%t = getelementptr i8, ptr @{MEMORY}, i64 {TRACE}",
        "%h = load i64, ptr %t",
        f"%s = add i64 %h, {zlib.crc32(function.name.encode()) + 1}",
    ]
    last = "%s"
    for i, kind in enumerate(parameters):
        if kind == "ptr":  # where in the memory it points, and nothing of what points elsewhere
            body += [
                f"%b{i} = ptrtoint ptr @{MEMORY} to i64",
                f"%i{i} = ptrtoint ptr %x{i} to i64",
                f"%o{i} = sub i64 %i{i}, %b{i}",
                f"%c{i} = icmp ult i64 %o{i}, {SLOT << 8}",
                f"%v{i} = select i1 %c{i}, i64 %o{i}, i64 -1",
            ]
        elif width := re.fullmatch(r"i(\d+)", kind):
            size = int(width[1])
            turn = "bitcast" if size == 64 else "zext" if size < 64 else "trunc"
            body.append(f"%v{i} = {turn} {kind} %x{i} to i64")
        elif kind == "double":
            body.append(f"%v{i} = bitcast double %x{i} to i64")
        elif kind == "float":
            body += [f"%w{i} = bitcast float %x{i} to i32", f"%v{i} = zext i32 %w{i} to i64"]
        else:
            continue
        body += [f"%y{i} = xor i64 {last}, %v{i}", f"%z{i} = mul i64 %y{i}, {MIXER}"]
        last = f"%z{i}"
    if function.name in RELEASE:  # LLVM knows, and leaves a test for null out
        body += ["%e = icmp eq ptr %x0, null", f"%f = select i1 %e, i64 %h, i64 {last}"]
        last = "%f"
    body += [f"store i64 {last}, ptr %t", f"%u = lshr i64 {last}, 33", "%l = and i64 %u, 7"]
    width = re.fullmatch(r"i(\d+)", returned)
    if returned == "void":
        body.append("ret void")
    elif returned == "ptr":
        body += [
            "%k = shl i64 %l, 6",
            f"%n = add i64 %k, {SLOT // 2}",
            f"%p = getelementptr i8, ptr @{MEMORY}, i64 %n",
            "ret ptr %p",
        ]
    elif returned == "i64":
        body.append("ret i64 %l")
    elif width:
        turn = "trunc" if int(width[1]) < 64 else "zext"
        body += [f"%n = {turn} i64 %l to {returned}", f"ret {returned} %n"]
    elif returned in ("float", "double"):
        body += [f"%n = uitofp i64 %l to {returned}", f"ret {returned} %n"]
    else:
        body.append(f"ret {returned} zeroinitializer")
    passed = [kind if kind == "..." else f"{kind} %x{i}" for i, kind in enumerate(parameters)]
    header = f'define {returned} @"{function.name}"({", ".join(passed)}) {{'
    return "\n".join([header, *body, "}"])


class Arena:
    """The memory that all versions share: arguments, result and trace in the first slot, then a
    slot for each global and each argument, should it be a pointer."""

    def __init__(self, layout: Layout):
        self.kinds, names = layout
        self.slots = {name: number for number, name in enumerate((MEMORY, *names))}
        self.first = len(self.slots)  # the slot of the first argument
        self._map = mmap.mmap(-1, SLOT * (self.first + len(self.kinds)))
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))

    def place(self, name: str) -> int:
        return self.address + SLOT * self.slots[name]

    def write(self, data: bytes) -> None:
        self._map[:] = data

    def read(self) -> bytes:
        return bytes(self._map)

    def fill(self, style: str, seed: int) -> bytes:
        """Memory and arguments of one input."""
        rng = random.Random(f"{style} {seed}")
        size = len(self._map)
        if style == "zeros":
            data = bytearray(size)
        elif style == "small numbers":
            data = bytearray(
                struct.pack(f"<{size // 4}i", *rng.choices(range(-2, 10), k=size // 4))
            )
        elif style == "pointers":  # to any place in the memory, with some room behind it
            inner = [self.address + at for at in range(SLOT // 2, size - SLOT // 2, 64)]
            data = bytearray(struct.pack(f"<{size // 8}Q", *rng.choices(inner, k=size // 8)))
        elif style == "text":
            data = bytearray(rng.choices(b"aZ09 -+./\0", k=size))
        else:
            data = bytearray(rng.randbytes(size))
        data[: SLOT // 2] = bytes(SLOT // 2)
        for i, kind in enumerate(self.kinds):
            if kind == "ptr":
                value = struct.pack("<Q", self.address + SLOT * (self.first + i))
            elif kind in ("float", "double"):
                number = rng.randint(-9, 9) / rng.choice((1, 2, 3))
                value = struct.pack("<f" if kind == "float" else "<d", number)
            elif style == "anything":
                value = rng.randbytes(8)
            else:
                value = struct.pack("<q", rng.choice((0, 1, 2, 3, 5, 8, 13, 64)))
            data[i * ARGUMENT : i * ARGUMENT + len(value)] = value
        return bytes(data)


if __name__ == "__main__":
    _main()
