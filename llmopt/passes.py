"""The search space: LLVM 22's deterministic transformation passes and the six -O pipelines.

A pass list is flat for people and for the model (`sroa,licm,inline,-Oz`), as in the paper
(Section II: 122 passes of LLVM 10 and six meta flags). LLVM's pass managers are nested;
`pipeline` derives the nesting. Every pass of LLVM 22 that is left out is in `EXCLUDED` with its
reason; that `gvn-sink` belongs there came out after the labels had been made with it
(`records.UNSTEADY`). What a pass does is not described here: LLVM's own documentation is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from llmopt.config import InputError, nearest

META = ("-O0", "-O1", "-O2", "-O3", "-Os", "-Oz")
OZ = ("-Oz",)

# One adaptor a pass: a list then means "each pass over the whole module before the next begins",
# so that a walk which applies the passes one at a time sees what the whole list would do.
_ADAPTOR = {
    "module": "{}",
    "cgscc": "cgscc({})",
    "function": "function({})",
    "loop": "function(loop({}))",
    "loop-mssa": "function(loop-mssa({}))",
    "meta": "default<{}>",
}

_BY_KIND = {
    "module": """
        always-inline attributor-light called-value-propagation canonicalize-aliases
        constmerge deadargelim elim-avail-extern globaldce globalopt globalsplit hotcoldsplit
        inferattrs inliner-wrapper inliner-wrapper-no-mandatory-first ipsccp ipsccp<func-spec>
        loop-extract loop-extract<single> mergefunc module-inline openmp-opt
        openmp-opt-postlink partial-inliner rel-lookup-table-converter rpo-function-attrs
        scc-oz-module-inliner strip-dead-prototypes""",
    "cgscc": """
        argpromotion attributor-light-cgscc function-attrs
        function-attrs<skip-non-recursive-function-attrs> inline inline<only-mandatory>
        openmp-opt-cgscc""",
    "function": """
        adce aggressive-instcombine alignment-from-assumptions assume-builder assume-simplify bdce
        break-crit-edges callsite-splitting chr consthoist constraint-elimination
        correlated-propagation dce dfa-jump-threading div-rem-pairs drop-unnecessary-assumes dse
        early-cse early-cse<memssa> fix-irreducible flatten-cfg float2int
        function-simplification<O1> function-simplification<O2> function-simplification<O3>
        function-simplification<Os> function-simplification<Oz> guard-widening gvn gvn<no-pre>
        gvn<memoryssa> gvn-hoist gvn-sink infer-address-spaces infer-alignment
        inject-tli-mappings instcombine<no-verify-fixpoint>
        instcombine<no-verify-fixpoint;max-iterations=2> instsimplify irce
        jump-table-to-switch jump-threading lcssa libcalls-shrinkwrap load-store-vectorizer
        loop-data-prefetch loop-distribute loop-fusion loop-load-elim loop-simplify loop-sink
        loop-unroll loop-unroll<O1> loop-unroll<O3;full-unroll-max=0;no-partial;no-runtime>
        loop-vectorize loop-versioning lower-constant-intrinsics lower-expect
        lower-guard-intrinsic lower-matrix-intrinsics lower-switch
        lower-widenable-condition make-guards-explicit mem2reg memcpyopt mergeicmps mergereturn
        mldst-motion mldst-motion<split-footer-bb> move-auto-init nary-reassociate newgvn
        partially-inline-libcalls reassociate reg2mem sccp scalarize-masked-mem-intrin scalarizer
        scalarizer<load-store> separate-const-offset-from-gep
        separate-const-offset-from-gep<lower-gep> simplifycfg
        simplifycfg<bonus-inst-threshold=2;hoist-common-insts;sink-common-insts>
        simplifycfg<forward-switch-cond;switch-range-to-icmp;switch-to-arithmetic>
        simplifycfg<forward-switch-cond;switch-range-to-icmp;switch-to-lookup;no-keep-loops>
        simplifycfg<no-speculate-blocks> sink slp-vectorizer slsr speculative-execution
        sroa<modify-cfg> sroa<preserve-cfg> tailcallelim 
        unify-loop-exits unreachableblockelim vector-combine""",
    "loop": """
        canon-freeze indvars loop-bound-split loop-deletion loop-flatten loop-idiom
        loop-idiom-vectorize loop-interchange loop-predication loop-reduce loop-term-fold
        loop-unroll-and-jam loop-unroll-full loop-versioning-licm""",
    "loop-mssa": """
        licm licm<no-allowspeculation> lnicm loop-instsimplify loop-rotate
        loop-rotate<no-header-duplication> loop-simplifycfg simple-loop-unswitch
        simple-loop-unswitch<nontrivial>""",
    "meta": " ".join(META),
}

_EXCLUDED = {
    "prints, draws or gathers facts and changes nothing": """
        aa-eval annotation-remarks count-visits dot-callgraph dot-cfg dot-cfg-only dot-ddg dot-dom
        dot-dom-only dot-post-dom dot-post-dom-only func-properties-stats helloworld instcount
        kernel-info lint pa-eval print* recompute-globalsaa transform-warning verify* view-*
        check-debugify prof-verify no-op-* invalidate<all> normalize""",
    "only renames, or only touches debug info, metadata, profiles or attributes of the linker": """
        add-discriminators annotation2metadata assign-guid cg-profile cross-dso-cfi debugify
        declare-to-assign embed-bitcode forceattrs instnamer metarenamer memprof-remove-attributes
        name-anon-globals noinline-nonprevailing norecurse-lto-inference pgo-force-function-attrs
        prof-inject pseudo-probe pseudo-probe-update redundant-dbg-inst-elim strip
        strip-dead-cg-profile strip-dead-debug-info strip-debug-declare strip-nondebug
        strip-nonlinetable-debuginfo rewrite-symbols declare-runtime-libcalls""",
    "instruments the program or checks it at run time": """
        alloc-token asan bounds-checking cfguard ctx-instr-gen ctx-instr-lower dfsan ee-instrument
        hwasan insert-gcov-profiling instrprof jmc-instrumenter kcfi lower-allow-check memprof
        memprof-module msan nsan pgo-instr-gen rtsan sancov-module sanmd-module stack-protector
        safe-stack tsan tsan-module tysan""",
    "needs a profile, a summary or a model that is not there": """
        ctx-prof-flatten ctx-prof-flatten-prethinlink function-import global-merge-func
        inliner-ml-advisor-release memprof-context-disambiguation memprof-use pgo-icall-prom
        pgo-instr-use pgo-memop-opt sample-profile wholeprogramdevirt extract-blocks
        replace-with-veclib simplify-type-tests lowertypetests""",
    "changes what a program computes (tests/test_semantics.py), or may outside its own place": """
        attributor attributor-cgscc lower-atomic lower-invoke structurizecfg""",
    "makes invalid IR after gvn or newgvn, and an opt with assertions stops in it": """
        iroutliner""",
    "lowers for a target, or needs its target machine": """
        atomic-expand callbr-prepare codegenprepare complex-deinterleaving dwarf-eh-prepare
        dxil-upgrade expand-ir-insts expand-memcmp expand-reductions expand-variadics
        free-machine-function gc-lowering global-merge hardware-loops indirectbr-expand
        interleaved-access interleaved-load-combine lower-emutls lower-global-dtors lower-ifunc
        pre-isel-intrinsic-lowering select-optimize shadow-stack-gc-lowering sjlj-eh-prepare
        typepromotion wasm-eh-prepare win-eh-prepare""",
    "serves another language, runtime or accelerator; nothing to do in C and C++ functions": """
        coro-annotation-elide coro-cleanup coro-early coro-elide coro-split
        hipstdpar-interpose-alloc hipstdpar-math-fixup hipstdpar-select-accelerator-code objc-arc
        objc-arc-contract objc-arc-expand place-safepoints rewrite-statepoints-for-gc
        strip-gc-relocates""",
    "changes the interface of the module: dropping the function would win every time": """
        internalize""",
    "a whole link-time pipeline, not a pass": """
        fatlto-cleanup fatlto-pre-link lto lto-pre-link thinlto thinlto-pre-link""",
    "runs nested passes that must be named, or only when another pass asks": """
        extra-simple-loop-unswitch-passes extra-vector-passes sandbox-vectorizer""",
    "made to crash or to fail, for LLVM's own tests": """
        trigger-crash-function trigger-crash-module trigger-verifier-error""",
}


@dataclass(frozen=True)
class Pass:
    """One entry of the search space: its flat `name`, its `kind` of pass manager."""

    name: str
    kind: str

    @property
    def text(self) -> str:
        """The pass inside the adaptors that a module pipeline needs around it."""
        return _ADAPTOR[self.kind].format(self.name.removeprefix("-"))


SPACE: dict[str, Pass] = {
    name: Pass(name, kind) for kind, names in _BY_KIND.items() for name in names.split()
}
EXCLUDED: dict[str, str] = {
    name: reason for reason, names in _EXCLUDED.items() for name in names.split()
}

_ITEM = re.compile(r"\s*([^,<>\s]+(?:<[^<>]*>)?)\s*(?:,|$)")


def check(passes: Iterable[str]) -> tuple[str, ...]:
    """The list as a tuple. `InputError` on an unknown pass or on a second meta flag."""
    passes = tuple(passes)
    for name in passes:
        if name not in SPACE:
            raise InputError(
                f"unknown pass {name!r}{nearest(name, SPACE)}: "
                "the search space is llmopt.passes.SPACE"
            )
    if sum(name in META for name in passes) > 1:
        raise InputError(f"pass list {format(passes)!r}: at most one of {' '.join(META)} in a list")
    return passes


def parse(text: str) -> tuple[str, ...]:
    """'sroa<modify-cfg>,licm,-Oz' as a tuple of names; the inverse of `format`.

    Raises `InputError` where the text is no list of known passes.
    """
    passes, at = [], 0
    while at < len(text):
        item = _ITEM.match(text, at)
        if item is None:
            raise InputError(
                f"pass list {text!r}: cannot read it at character {at + 1}; "
                "separate pass names by commas"
            )
        passes.append(item[1])
        at = item.end()
    return check(passes)


def format(passes: Iterable[str]) -> str:
    """The flat text of a pass list, the form that tables, labels and people use."""
    return ",".join(passes)


def pipeline(passes: Iterable[str]) -> str:
    """LLVM's textual pipeline for a list: `opt -passes=...` or `LLVMRunPasses`."""
    return ",".join(SPACE[name].text for name in passes)
