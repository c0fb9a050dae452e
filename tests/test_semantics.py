"""Every pass of the search space must keep what programs compute: the sample's functions are run
in a JIT before and after, on the same random arguments and memory.

An autotuner looks for the smallest code, so a pass that is wrong outside its intended place (as
`structurizecfg` is on a switch) would win again and again.
"""

import ctypes
import random
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import llvmlite.binding as jit
import pytest

from llmopt import frontend, ir, passes
from llmopt.config import ROOT
from llmopt.sandbox import Sandbox

INT, BYTES, INTS, DOUBLES = ctypes.c_int, 1, 4, 8
# name: the kinds of its arguments (a size in bytes is a buffer of such elements)
SIGNATURES = {
    "clamp": [INT] * 3, "gcd": [INT] * 2, "power_modulo": [INT] * 3, "population_count": [INT],
    "reverse_bits": [INT], "crc32": [BYTES, INT], "fnv1a": [BYTES], "fibonacci": [INT],
    "is_prime": [INT], "sieve": [BYTES, INT], "binary_search": [INTS, INT, INT],
    "bubble_sort": [INTS, INT], "insertion_sort": [INTS, INT], "counting_sort": [BYTES, INT],
    "matrix_multiply": [DOUBLES, DOUBLES, DOUBLES, INT], "trace4": [INTS],
    "parse_integer": [BYTES], "string_compare": [BYTES, BYTES], "string_reverse": [BYTES, INT],
    "is_palindrome": [BYTES, INT], "longest_run": [INTS, INT], "largest_sum": [INTS, INT],
    "days_in_month": [INT, INT], "area2": [INTS, INT],
    "edit_distance": [BYTES, INT, BYTES, INT, INTS],
}  # fmt: skip
CELLS = 64  # elements in a buffer
VOID = {"bubble_sort", "insertion_sort", "counting_sort", "matrix_multiply", "string_reverse"}


def buffer(kind: int, rng: random.Random) -> ctypes.Array:
    if kind == DOUBLES:
        return (ctypes.c_double * 144)(*[rng.uniform(-9, 9) for _ in range(144)])
    if kind == INTS:
        return (ctypes.c_int * CELLS)(*sorted(rng.randint(-3, 9) for _ in range(CELLS)))
    return (ctypes.c_ubyte * CELLS)(*rng.choices(b"01-ab ", k=CELLS - 1), 0)


def outcome(name: str, normalised: str) -> list:
    """Result and memory after each of a few calls on random arguments."""
    triple = jit.get_default_triple()
    module = jit.parse_assembly(
        f'target triple = "{triple}"\n' + ir.module_text(normalised, "stripped")
    )
    engine = jit.create_mcjit_compiler(
        module, jit.Target.from_triple(triple).create_target_machine(opt=0)
    )
    engine.finalize_object()
    kinds = SIGNATURES[name]
    types = [ctypes.c_int if kind is INT else ctypes.c_void_p for kind in kinds]
    call = ctypes.CFUNCTYPE(ctypes.c_int, *types)(engine.get_function_address(name))
    rng, seen = random.Random(name), []
    for _ in range(6):
        arguments = [rng.randint(1, 12) if k is INT else buffer(k, rng) for k in kinds]
        result = call(*[a if isinstance(a, int) else ctypes.addressof(a) for a in arguments])
        memory = [bytes(a) for a in arguments if not isinstance(a, int)]
        seen.append((None if name in VOID else result, memory))
    return seen


def wrong(name: str, normalised: str) -> list[tuple[str, ...]]:
    """The pass lists that change the function's outcome, in a process of its own."""
    jit.initialize_native_target()
    jit.initialize_native_asmprinter()
    single = [p for p in passes.SPACE if p not in passes.META]
    lists = [(p,) for p in passes.SPACE]
    lists += [("sroa<modify-cfg>", "simplifycfg", p) for p in single]
    lists += [(p, "-Oz") for p in single] + [("-Oz", p) for p in single]
    rng = random.Random(0)
    lists += [tuple(rng.choices(single, k=rng.randint(4, 9))) for _ in range(100)]
    expected = outcome(name, normalised)
    known = {}
    with Sandbox() as box:
        for run in box.run(normalised, "stripped", lists, text=True):
            if run.ok:
                known.setdefault(run.text, run.passes)
    return [names for text, names in known.items() if outcome(name, text) != expected]


@pytest.fixture(scope="module")
def functions():
    compiled = frontend.compile(ROOT / "data" / "sample" / "algorithms.c")
    assert compiled.ok, compiled.error
    return {name: text for name, text in ir.split(compiled.ir).items() if name in SIGNATURES}


def test_passes_keep_what_functions_compute(functions):
    assert set(functions) == set(SIGNATURES)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        running = {name: pool.submit(wrong, name, text) for name, text in functions.items()}
        found = {name: future.result(timeout=300) for name, future in running.items()}
    assert {name: lists for name, lists in found.items() if lists} == {}


def test_the_harness_sees_a_wrong_result(functions):
    broken = functions["clamp"].replace("icmp slt", "icmp sgt")
    assert broken != functions["clamp"]
    jit.initialize_native_target()
    jit.initialize_native_asmprinter()
    assert outcome("clamp", broken) != outcome("clamp", functions["clamp"])
