"""LLVM-IR as text: normalise, split into functions, count, hash, rename. No LLVM needed.

The *normalised IR* of one function is the unit of everything that follows (paper, Section II-C):
one module with one definition and the declarations it needs; comments, metadata, attributes and
target lines dropped; one instruction a line, no indentation. It is what the model reads and, by its
sha256, what labels are joined on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator

from llmopt.config import check_protocol

# What clang says for x86-64; the one target line that every module of ours is given back.
DATALAYOUT = "e-m:e-p270:32:32-p271:32:32-p272:64:64-i64:64-i128:128-f80:128-n8:16:32:64-S128"
PROTOCOL_ATTRIBUTES = {"stripped": "", "minsize": " minsize optsize"}

_NAME = r'(?:"[^"]*"|[-a-zA-Z$._0-9]+)'
_PAREN = r"\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)"

# The attributes of LLVM 22's LangRef, dropped as the paper drops them: what is known about a value,
# and some of how it is passed (sret, zeroext, signext). Those without which the IR would be invalid
# or pass something else stay: byval, byref, inalloca, preallocated, elementtype, nest, inreg.
_ATTRIBUTES = """
    allocptr alwaysinline builtin cold convergent coro_elide_safe coro_only_destroy_when_complete
    dead_on_unwind disable_sanitizer_instrumentation flatten fn_ret_thunk_extern hot
    hybrid_patchable immarg inlinehint jumptable minsize mustprogress naked noalias nobuiltin
    nocallback nocapture nocf_check nocreateundeforpoison nodivergencesource noduplicate noext
    nofree noimplicitfloat noinline nomerge nonlazybind nonnull noprofile norecurse noredzone
    noreturn nosanitize_bounds nosanitize_coverage nosync noundef nounwind null_pointer_is_valid
    optdebug optforfuzzing optnone optsize presplitcoroutine readnone readonly returned
    returns_twice safestack sanitize_address sanitize_alloc_token sanitize_hwaddress
    sanitize_memory sanitize_memtag sanitize_numerical_stability sanitize_realtime
    sanitize_realtime_blocking sanitize_thread sanitize_type shadowcallstack signext skipprofile
    speculatable speculative_load_hardening ssp sspreq sspstrong strictfp uwtable willreturn
    writable writeonly zeroext""".split()
_ATTRIBUTES_WITH_VALUE = """
    allockind allocsize captures dead_on_return dereferenceable dereferenceable_or_null
    initializes memory nofpclass range sret uwtable vscale_range""".split()
_LINKER_WORDS = "dso_local dso_preemptable unnamed_addr local_unnamed_addr hidden protected".split()

_LEX = re.compile(
    rf"""
    (?P<keep>   [%@$]{_NAME} | c?"[^"]*" )                        # names and strings: as they are
  | (?P<tail>   ,?\s*![a-zA-Z_.]+[a-zA-Z_.0-9]*\s+!(?:\d+|\{{\}}|\w+\([^()]*\)) )   # , !dbg !7
  | (?P<comment> ;.* )
  | (?P<group>  \#\d+ )                                           # an attribute group
  | (?P<valued> (?<![\w.])(?:{"|".join(_ATTRIBUTES_WITH_VALUE)}){_PAREN} )
  | (?P<word>   (?<![\w.])(?:{"|".join(_ATTRIBUTES + _LINKER_WORDS)})(?![\w.:(-]) )
  | (?P<align>  (?<!,\s)(?<![\w.])align\s+\d+ )                   # ', align 4' is no attribute
  | (?P<comdat> (?:,\s*)?(?<![\w.])comdat(?![\w.:-])(?:\(\${_NAME}\))? )
    """,
    re.VERBOSE,
)
_DROPPED_LINES = (
    "source_filename",
    "target ",
    "attributes #",
    "!",
    "module asm",
    "^",
    "#dbg_",
    "$",
)
_CONTINUES = ("to label ", "cleanup", "catch ", "filter ")
_SPACES = re.compile(r'(?P<string>"[^"]*")|(?P<none>\s+(?=[,)])|(?<=\()\s+)|\s+')
_STRING_OR_NAME = re.compile(rf'c"[^"]*"|(?P<name>[%@]{_NAME})')
_LABEL = re.compile(rf"{_NAME}:$")
_LINKAGE = re.compile(
    r"^define (?:(?:private|internal|available_externally|linkonce_odr|linkonce|weak_odr|weak|"
    r"common|appending|extern_weak|external|default|dllimport|dllexport) )*"
)
_HEADER_SYMBOL = re.compile(rf"^(?:define|declare) [^@]*@({_NAME})\(")
_GLOBAL = re.compile(
    rf"^(?P<name>@{_NAME}) = (?P<before>.*?)"
    r"(?P<kind>\bglobal|\bconstant|\balias|\bifunc) (?P<rest>.*)$"
)
_KEPT_GLOBAL_WORDS = re.compile(r"thread_local(?:\([a-z]+\))?|addrspace\(\d+\)")
_ODR = re.compile(r"^define (?:\w+ )*?(?:linkonce_odr|linkonce|available_externally) ")


def _lines(text: str) -> Iterator[str]:
    """Lines without comments, metadata, attributes and superfluous space."""
    for line in text.splitlines():
        line = line.strip()
        if not line or line.startswith(_DROPPED_LINES):
            continue
        line = _LEX.sub(lambda m: m[0] if m["keep"] else "", line)
        line = _SPACES.sub(lambda m: m["string"] or ("" if m["none"] else " "), line).strip()
        if line:
            yield line


def normalise(text: str) -> str:
    """The paper's normalisation of a module's text (Section II-C); idempotent.

    Drops comments, metadata, attributes, comdats and target lines, makes white space uniform and
    brings an instruction that LLVM prints over several lines (switch, invoke) onto one.
    """
    out: list[str] = []
    in_body = in_table = False
    for line in _lines(text):
        if in_table or (in_body and line.startswith(_CONTINUES) and not line.endswith(":")):
            out[-1] += " " + line
        else:
            out.append(line)
        in_body = (in_body or line.startswith("define ")) and line != "}"
        in_table = in_body and (line.endswith("[") or (in_table and line != "]"))
    return "\n".join(out) + "\n" if out else ""


def function_id(normalised: str) -> str:
    """The function's identity everywhere: sha256 (hex) of its normalised IR."""
    return hashlib.sha256(normalised.encode()).hexdigest()


def bodies(normalised: str) -> Iterator[tuple[str, list[str]]]:
    """Each definition as (header line, lines between the braces)."""
    header, body = None, []
    for line in normalised.splitlines():
        if line.startswith("define "):
            header, body = line, []
        elif header is not None and line == "}":
            yield header, body
            header = None
        elif header is not None:
            body.append(line)


def count(normalised: str) -> int:
    """Instructions in all definitions: the paper's metric, from the text alone."""
    return sum(not _LABEL.match(line) for _, body in bodies(normalised) for line in body)


def symbol(header: str) -> str:
    """The bare name of the function that a `define` or `declare` line is about."""
    match = _HEADER_SYMBOL.match(header)
    if match is None:
        raise ValueError(f"no function header: {header[:80]!r}")
    return match[1].strip('"')


def _names(text: str) -> list[str]:
    """All %names and @names in order of first appearance, strings aside."""
    return list(dict.fromkeys(m["name"] for m in _STRING_OR_NAME.finditer(text) if m["name"]))


def _type_end(text: str) -> int:
    """Where the type at the start of `text` ends."""
    if text[0] not in "[{<":
        return re.match(rf"(?:%{_NAME}|[\w.]+)(?: ?addrspace\(\d+\))?", text).end()
    depth = 0
    for token in re.finditer(r'"[^"]*"|[\[{<(]|[\]}>)]', text):
        depth += {"[": 1, "{": 1, "<": 1, "(": 1, '"': 0}.get(token[0][0], -1)
        if depth == 0:
            return token.end()
    raise ValueError(f"unbalanced type: {text[:80]!r}")


def _declaration(header: str) -> str:
    """`declare` for a header line: no linkage, no parameter names, nothing after the list."""
    text = _LINKAGE.sub("declare ", header)
    start = _HEADER_SYMBOL.match(text).end() - 1
    inside = text[start + 1 : start + _balanced(text[start:]) - 1]
    kept, depth, begin = [], 0, 0
    for token in re.finditer(r'"[^"]*"|[\[{<(]|[\]}>)]|,|$', inside):
        if token[0] in (",", "") and depth == 0:
            parameter = inside[begin : token.start()].strip()
            end = _type_end(parameter) if parameter else 0
            kept.append(parameter[:end] + re.sub(rf" %{_NAME}$", "", parameter[end:]))
            begin = token.end()
        elif token[0] != "," and token[0][:1] != '"':
            depth += 1 if token[0] in "[{<(" else -1
    return f"{text[:start]}({', '.join(kept)})"


def _balanced(text: str) -> int:
    depth = 0
    for token in re.finditer(r'"[^"]*"|[()]', text):
        depth += {"(": 1, ")": -1}.get(token[0], 0)
        if depth == 0 and token[0] == ")":
            return token.end()
    raise ValueError(f"unbalanced parentheses: {text[:80]!r}")


def _external(line: str) -> str:
    """A global's definition as a declaration: its type stays, its contents go (`llvm-extract`)."""
    match = _GLOBAL.match(line)
    name, kind, rest = match["name"], match["kind"], match["rest"]
    if kind in ("alias", "ifunc"):
        function = re.match(r"(.+?) (\(.*\)), ", rest)
        if function:
            return f"declare {function[1]} {name}{function[2]}"
        return f"{name} = external global {rest[: _type_end(rest)]}"
    words = "".join(word + " " for word in _KEPT_GLOBAL_WORDS.findall(match["before"]))
    align = re.search(r", align \d+$", rest)
    tail = align[0] if align else ""
    return f"{name} = external {words}{kind} {rest[: _type_end(rest)]}{tail}"


def split(text: str, skip_headers: bool = True) -> dict[str, str]:
    """One normalised single-function module per definition of a module's text.

    The definition becomes external; every other function and global that it names becomes a
    declaration, as `llvm-extract` does. With `skip_headers`, `linkonce_odr` and
    `available_externally` definitions (C++ inline and template functions) are left out.

    Returns normalised text by function name, in the order of the module.
    """
    types: dict[str, str] = {}
    known: dict[str, str] = {}  # every global symbol, as a declaration
    normal = normalise(text)
    depth_body = False
    for line in normal.splitlines():
        if line.startswith(("define ", "declare ")):
            known["@" + _HEADER_SYMBOL.match(line)[1]] = _declaration(line)
            depth_body = line.startswith("define ")
        elif depth_body:
            depth_body = line != "}"
        elif line.startswith("%"):
            types[line.split(" = ", 1)[0]] = line
        elif _GLOBAL.match(line):
            known[_GLOBAL.match(line)["name"]] = _external(line)
    out = {}
    for header, body in bodies(normal):
        if skip_headers and _ODR.match(header):
            continue
        own = "@" + _HEADER_SYMBOL.match(header)[1]
        definition = "\n".join([_LINKAGE.sub("define ", header), *body, "}"])
        wanted = [n for n in _names(definition) if n in known and n != own]
        outside = [known[n] for n in wanted]
        needed: dict[str, None] = {}
        queue = _names("\n".join([definition, *outside]))
        while queue:
            name = queue.pop(0)
            if name in types and name not in needed:
                needed[name] = None
                queue += _names(types[name])
        parts = [types[name] for name in types if name in needed]
        parts += [line for line in outside if line.startswith("@")]
        parts += [definition]
        parts += [line for line in outside if line.startswith("declare ")]
        out[own[1:].strip('"')] = "\n".join(parts) + "\n"
    return out


def module_text(normalised: str, protocol: str) -> str:
    """What LLVM is given: the data layout and, under `minsize`, the attributes that
    `clang -Oz` puts on every definition (DESIGN 4)."""
    added = PROTOCOL_ATTRIBUTES[check_protocol(protocol)]
    if added:
        lines = []
        for line in normalised.splitlines():
            if line.startswith("define "):
                start = _HEADER_SYMBOL.match(line).end() - 1
                end = start + _balanced(line[start:])
                line = line[:end] + added + line[end:]
            lines.append(line)
        normalised = "\n".join(lines) + "\n"
    return f'target datalayout = "{DATALAYOUT}"\n{normalised}'


# The library functions whose names mean something to LLVM keep them (TargetLibraryInfo, the part
# that C and C++ programs use); all other symbols are interchangeable.
LIBRARY = frozenset(
    """
    abort abs acos acosf acosh asin asinf asinh atan atan2 atan2f atanf atanh atof atoi atol
    atoll bcmp bcopy bzero calloc cbrt cbrtf ceil ceilf chmod copysign copysignf cos cosf cosh
    coshf exit exp exp10 exp2 exp2f expf expm1 fabs fabsf fclose fdopen feof ferror fflush ffs
    ffsl fgetc fgets fileno floor floorf fmax fmaxf fmin fminf fmod fmodf fopen fprintf fputc
    fputs fread free frexp fscanf fseek ftell fwrite getc getchar getenv gets hypot isalnum
    isalpha isascii isdigit islower isprint isspace isupper isxdigit labs ldexp llabs log log10
    log10f log1p log2 log2f logf longjmp malloc memalign memccpy memchr memcmp memcpy memmove
    mempcpy memrchr memset modf nearbyint open perror pow powf printf putc putchar puts qsort
    rand read realloc realpath remove rename rewind rint rintf round roundf scanf setjmp
    _setjmp signal sin sinf sinh snprintf sprintf sqrt sqrtf srand sscanf stat strcasecmp
    strcat strchr strcmp strcoll strcpy strcspn strdup strlcat strlcpy strlen strncasecmp
    strncat strncmp strncpy strndup strnlen strpbrk strrchr strspn strstr strtod strtof strtok
    strtok_r strtol strtoll strtoul strtoull system tan tanf tanh tanhf time toascii tolower
    toupper trunc truncf ungetc unlink vfprintf vprintf vsnprintf vsprintf write __assert_fail
    __cxa_allocate_exception __cxa_atexit __cxa_begin_catch __cxa_end_catch
    __cxa_free_exception __cxa_guard_acquire __cxa_guard_release __cxa_rethrow __cxa_throw
    __gxx_personality_v0 __memcpy_chk __memset_chk __strcpy_chk __sprintf_chk __stack_chk_fail
    _Znwm _Znam _ZdlPv _ZdaPv _ZdlPvm _ZdaPvm _ZSt9terminatev stdin stdout stderr
    __errno_location
    """.split()
)


def _renamable(name: str) -> bool:
    return not (name[1:] in LIBRARY or name.startswith("@llvm."))


def rename(normalised: str) -> tuple[str, dict[str, str]]:
    """Short canonical names for types, globals and functions: `%T0`, `@g0`, `@f0` …

    Numbered by first appearance from the definition on, so `@f0` is the function itself. Intrinsics
    and library functions keep their names: LLVM knows them. Exactly reversible:
    `restore(*rename(x)) == x`.

    Returns the renamed text and `{short: original}`.
    """
    lines = normalised.splitlines()
    types = {line.split(" = ", 1)[0] for line in lines if re.match(rf"%{_NAME} = type ", line)}
    variables = {m["name"] for line in lines if line[:1] == "@" and (m := _GLOBAL.match(line))}
    start = normalised.find("define ")
    order = _names(normalised[start:] + normalised[: max(start, 0)])
    counters = {"%T": 0, "@g": 0, "@f": 0}
    short: dict[str, str] = {}
    for name in order:
        if name[0] == "%":
            prefix = "%T" if name in types and not name[1:].isdigit() else None
        else:
            prefix = ("@g" if name in variables else "@f") if _renamable(name) else None
        if prefix:
            short[name] = f"{prefix}{counters[prefix]}"
            counters[prefix] += 1
    return substitute(normalised, short), {v: k for k, v in short.items()}


def substitute(text: str, names: dict[str, str]) -> str:
    """Replace whole %names and @names; strings are left alone. Symbols that LLVM derives from the
    function's own (`@switch.table.f`, `@f.cold.1`) follow it."""
    own = next((pair for pair in names.items() if "@f0" in pair), None)

    def new(match: re.Match) -> str:
        name = match["name"]
        if name is None or name in names:
            return names.get(name, match[0])
        if own and name.startswith(own[0] + "."):
            return own[1] + name[len(own[0]) :]
        if own and name[0] == "@" and name.endswith("." + own[0][1:]):
            return name[: -len(own[0]) + 1] + own[1][1:]
        return name

    return _STRING_OR_NAME.sub(new, text)


def restore(renamed: str, names: dict[str, str]) -> str:
    """The inverse of `rename`: back to the program's own names."""
    return substitute(renamed, names)


def structural_hash(normalised: str) -> str:
    """Equal for functions that differ only in names: of symbols, types, values and labels.

    Used to find near-duplicates across projects (DESIGN 7). Sha256 in hex.
    """
    definition = "".join(f"{header}\n" + "\n".join(body) for header, body in bodies(normalised))
    around = {line.split(" = ", 1)[0]: line for line in normalised.splitlines() if line[0] in "%@"}
    queue = _names(definition)  # types and globals that it names, and those that these name
    for name in queue:
        if name in around:
            definition += "\n" + around[name]
            queue += [other for other in _names(around.pop(name)) if other in around]
    labels = re.sub(rf"(?m)^({_NAME}):$", r"%\1:", definition)
    numbers: dict[str, str] = {}
    canonical = _STRING_OR_NAME.sub(
        lambda m: (
            m[0]
            if m["name"] is None or not _renamable(m["name"])
            else numbers.setdefault(m["name"], f"{m['name'][0]}{len(numbers)}")
        ),
        labels,
    )
    return hashlib.sha256(canonical.encode()).hexdigest()
