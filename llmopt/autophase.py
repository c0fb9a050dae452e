"""AutoPhase: a small policy that chooses pass after pass from counts (Haj-Ali et al., MLSys 2020).

One of the paper's baselines (Section III, Table III): PPO, 56 features, 45 passes on each function.
Unlike a language model it acts on what the last pass left, so one list costs as many compilations
as it has passes. `features` describes the code, `environment` is the game as Gymnasium sees it,
`train` plays it with Stable-Baselines3, and a `Policy` needs neither of them any more.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from llmopt import config, ir, passes, sandbox
from llmopt.config import InputError

if TYPE_CHECKING:
    import gymnasium

CEILING = 10.0  # of a feature an instruction, so that an unrolled loop does not drown the rest

# --- the 56 features -----------------------------------------------------------------------------

NAMES = (
    "BBNumArgsHi BBNumArgsLo onePred onePredOneSuc onePredTwoSuc oneSuccessor twoPred "
    "twoPredOneSuc twoEach twoSuccessor morePreds BB03Phi BBHiPhi BBNoPhi BeginPhi "
    "BranchCount returnInt CriticalCount NumEdges const32Bit const64Bit numConstZeroes "
    "numConstOnes UncondBranches binaryConstArg NumAShrInst NumAddInst NumAllocaInst "
    "NumAndInst BlockMid BlockLow NumBitCastInst NumBrInst NumCallInst NumGetElementPtrInst "
    "NumICmpInst NumLShrInst NumLoadInst NumMulInst NumOrInst NumPHIInst NumRetInst "
    "NumSExtInst NumSelectInst NumShlInst NumStoreInst NumSubInst NumTruncInst NumXorInst "
    "NumZExtInst TotalBlocks TotalInsts TotalMemInst TotalFuncs ArgsPhi testUnary"
).split()
_INDEX = {name: i for i, name in enumerate(NAMES)}
_OPCODES = {name[3:-4].lower(): name for name in NAMES if re.fullmatch("Num.*Inst", name)}
_INTEGER = "add sub mul udiv sdiv urem srem shl lshr ashr and or xor".split()
_BINARY = frozenset([*_INTEGER, *"fadd fsub fmul fdiv frem".split()])
_UNTYPED_SECOND = frozenset([*_INTEGER, "icmp"])  # `add i32 %1, 5`: one type for both operands
_UNARY = frozenset(
    "alloca load trunc zext sext fptrunc fpext fptoui fptosi uitofp sitofp ptrtoint ptrtoaddr "
    "inttoptr bitcast addrspacecast extractvalue freeze fneg va_arg".split()
)
_MEMORY = frozenset("alloca load store getelementptr call invoke".split())

_QUOTED = re.compile(r'"[^"]*"')
_LABEL = re.compile(r"([-\w$.]+):$")
_OPCODE = re.compile(r"(?:%[-\w$.]+ = )?(?:(?:tail|musttail|notail) )?(\w+)")
_TARGET = re.compile(r"\blabel %([-\w$.]+)")
# What an operand holds inside itself is no operand: constant expressions (a parenthesis after a
# space; a call's follows its callee at once) and aggregates, vectors and their types.
_FLAT = re.compile(r"(?:addrspace|blockaddress)\([^()]*\)")
_NESTED = re.compile(r" \([^()]*\)|\[(?! )[^][]*\]|<[^<>]*>|\{[^{}]*\}")
_VALUE = r"(-?\d+|true|false)(?![-\w.$])"
_TYPED = re.compile(rf"(?<![-%@\w.$])i(\d+) {_VALUE}")
_SECOND = re.compile(rf"(?<![-%@\w.$])i(\d+) [^,]+, {_VALUE}$")
_PHI = re.compile(r" = phi i(\d+) ")
_INCOMING = re.compile(rf"\[ {_VALUE}")
_INTEGER_CALL = re.compile(r"\bcall (?:\w+ )*i\d+ @")


def features(normalised: str) -> np.ndarray:
    """The 56 Autophase features of a module's normalised text: counts, int64, in the order `NAMES`.

    Names, order and meaning are those of CompilerGym's LLVM pass (`autophase/InstCount.cc`), with
    what its names do not tell: `TotalFuncs` counts declarations too; `returnInt` is direct calls of
    functions that return an integer; `TotalMemInst` includes calls; predecessors and critical edges
    go by edges, so a switch with two ways to a block counts twice; an alloca without a size has a
    32-bit constant 1 as operand. Only a whole operand is a constant, not what a vector or a
    constant expression holds.

    Departs from it where LLVM 22 does from that pass's LLVM 10: pointers are opaque, so most
    bitcasts and all-zero getelementptrs are gone, and `freeze` is a unary instruction.
    """
    quoted: dict[str, str] = {}
    text = _QUOTED.sub(lambda m: quoted.setdefault(m[0], f"$quoted{len(quoted)}"), normalised)
    found: Counter[str] = Counter()
    found["TotalFuncs"] = len(re.findall(r"(?m)^(?:define|declare) ", text))
    for _, body in ir.bodies(text):
        _count_function(body, found)
    out = np.zeros(len(NAMES), dtype=np.int64)
    for name, number in found.items():
        out[_INDEX[name]] = number
    return out


def _count_function(body: list[str], found: Counter[str]) -> None:
    blocks: list[tuple[str, list[str]]] = []
    for line in body:
        if label := _LABEL.match(line):
            blocks.append((label[1], []))
        else:
            if not blocks:
                blocks.append(("", []))  # the entry, which nothing can branch to
            blocks[-1][1].append(line)
    after = [_TARGET.findall(lines[-1]) for _, lines in blocks]
    before = Counter(target for targets in after for target in targets)
    for (name, lines), targets in zip(blocks, after, strict=True):
        _count_shape(before[name], len(targets), found)
        if len(targets) > 1:
            found["CriticalCount"] += sum(before[target] > 1 for target in targets)
        _count_phis([line for line in lines if " = phi " in line], found)
        found["BlockLow"] += len(lines) < 15
        found["BlockMid"] += 15 <= len(lines) <= 500
        for line in lines:
            _count_instruction(line, found)


def _count_shape(before: int, after: int, found: Counter[str]) -> None:
    found["TotalBlocks"] += 1
    found["NumEdges"] += after
    found["onePred"] += before == 1
    found["twoPred"] += before == 2
    found["morePreds"] += before > 2
    found["oneSuccessor"] += after == 1
    found["twoSuccessor"] += after == 2
    found["onePredOneSuc"] += before == 1 == after
    found["onePredTwoSuc"] += before == 1 and after == 2
    found["twoPredOneSuc"] += before == 2 and after == 1
    found["twoEach"] += before == 2 == after


def _count_phis(phis: list[str], found: Counter[str]) -> None:
    arguments = sum(line.count("[ ") for line in phis)
    found["ArgsPhi"] += arguments
    found["BeginPhi"] += bool(phis)
    found["BBNumArgsHi"] += arguments > 5
    found["BBNumArgsLo"] += 1 <= arguments <= 5
    found["BBNoPhi"] += not phis
    found["BB03Phi"] += 1 <= len(phis) <= 3
    found["BBHiPhi"] += len(phis) > 3


def _count_instruction(line: str, found: Counter[str]) -> None:
    opcode = _OPCODE.match(line)[1]
    line, nested = _FLAT.sub("", line), 1
    while nested:
        line, nested = _NESTED.subn("", line)
    found["TotalInsts"] += 1
    if opcode in _OPCODES:
        found[_OPCODES[opcode]] += 1
    found["TotalMemInst"] += opcode in _MEMORY
    found["testUnary"] += opcode in _UNARY
    found["BranchCount"] += opcode == "br"
    found["UncondBranches"] += opcode == "br" and len(_TARGET.findall(line)) == 1
    found["returnInt"] += opcode == "call" and bool(_INTEGER_CALL.search(line))
    if opcode in _BINARY:
        found["binaryConstArg"] += line.split(" = ", 1)[1].count("%") < 2
    for width, value in _constants(opcode, line):
        found["const32Bit"] += width == "32"
        found["const64Bit"] += width == "64"
        found["numConstZeroes"] += value in ("0", "false")
        found["numConstOnes"] += value in ("1", "true")


def _constants(opcode: str, line: str) -> list[tuple[str, str]]:
    """Width and value of each operand that is an integer constant."""
    if opcode == "phi":
        kind = _PHI.search(line)
        return [(kind[1], value) for value in _INCOMING.findall(line)] if kind else []
    constants = _TYPED.findall(line)
    if opcode in _UNTYPED_SECOND:
        constants += _SECOND.findall(line)
    if opcode == "alloca" and not re.search(r", i\d+ ", line):
        constants.append(("32", "1"))
    return constants


# --- an episode ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    """How to learn: `actions` to choose from, `length` of an episode in passes (45 in the paper),
    `timesteps` of training in passes, `episodes` between two updates, then PPO's own."""

    actions: tuple[str, ...]
    length: int = 45
    timesteps: int = 100_000
    episodes: int = 16
    hidden: tuple[int, ...] = (64, 64)
    learning_rate: float = 3e-4
    entropy: float = 0.01


def actions(lists: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The passes that occur in `lists`, in the order of the search space, meta flags aside.

    Of the pilot's winners (`labels.known`) that is 36 and 38 of 153 passes, as many as AutoPhase
    had (45). A pass that never served a search of hundreds of lists a function would only cost
    tries here, which are far fewer. The flags stay out as a list holds one of them at most."""
    occur = {name for names in lists for name in names}
    return tuple(name for name in passes.SPACE if name in occur and name not in passes.META)


class Episode:
    """One function on its way: the `passes` taken so far, the `text` and the `count` of
    instructions that they left, and what the policy sees. Raises `InputError` on text that LLVM
    does not take."""

    def __init__(self, text: str, protocol: str, actions: Sequence[str], length: int):
        self.protocol, self.actions, self.length = protocol, actions, length
        self.taken = np.zeros(len(actions), dtype=np.int64)  # how often each action was taken
        self.passes: tuple[str, ...] = ()
        start = sandbox.shared().run(text, protocol, [()], text=True)[0]
        if not start.ok:
            raise InputError(f"no function to begin with: {start.status}: {start.message}")
        self.initial = self.count = start.count
        self.text, self._features = start.text, features(start.text)

    @property
    def over(self) -> bool:
        return self.taken.sum() >= self.length

    def observation(self) -> np.ndarray:
        """float32 (56 + actions,): the features an instruction of the unoptimised function, at most
        `CEILING`, and how often each action was taken, as a share of the episode's length. (The
        histogram is AutoPhase's own; without it, a pass without effect would be taken for ever.)"""
        counts = np.minimum(self._features / self.initial, CEILING)
        return np.concatenate([counts, self.taken / self.length]).astype(np.float32)

    def step(self, action: int) -> float:
        """Take a pass; returns the instructions that it saved, as a share of the unoptimised ones.

        It is run on the normalised text that the last one left. Attributes and metadata are lost
        there, so the list as one pipeline may leave another count; it seldom does, and to run all
        of it anew at each step takes more than twice as long. A pass on which LLVM fails leaves
        the code as it is and is no part of `passes`."""
        name = self.actions[action]
        run = sandbox.shared().run(self.text, self.protocol, [(name,)], text=True)[0]
        self.taken[action] += 1
        if not run.ok:
            return 0.0
        saved, self.count = self.count - run.count, run.count
        self.passes += (name,)
        self.text, self._features = run.text, features(run.text)
        return saved / self.initial


def environment(functions: Sequence[str], protocol: str, settings: Settings) -> gymnasium.Env:
    """Episodes on functions (normalised IR) drawn at random, by the seed of `reset`."""
    import gymnasium

    class PassOrdering(gymnasium.Env):
        metadata = {"render_modes": []}

        def __init__(self) -> None:
            size = len(NAMES) + len(settings.actions)
            self.observation_space = gymnasium.spaces.Box(0.0, CEILING, (size,), np.float32)
            self.action_space = gymnasium.spaces.Discrete(len(settings.actions))

        def reset(self, *, seed: int | None = None, options: dict | None = None):
            super().reset(seed=seed)
            text = functions[self.np_random.integers(len(functions))]
            self.episode = Episode(text, protocol, settings.actions, settings.length)
            return self.episode.observation(), {}

        def step(self, action):
            reward = self.episode.step(int(action))
            # Its end is the task's own, not a limit on time: nothing is worth anything after it.
            return self.episode.observation(), reward, bool(self.episode.over), False, {}

    return PassOrdering()


# --- the policy ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Policy:
    """What was learned: `layers` of (weight, bias), tanh between them, from an observation to a
    score of each action."""

    actions: tuple[str, ...]
    length: int
    layers: tuple[tuple[np.ndarray, np.ndarray], ...]

    def scores(self, observation: np.ndarray) -> np.ndarray:
        *hidden, (weight, bias) = self.layers
        for inner, shift in hidden:
            observation = np.tanh(inner @ observation + shift)
        return weight @ observation + bias

    def walk(self, text: str, protocol: str) -> tuple[str, ...]:
        """The likeliest pass, `length` times over, on a function's normalised IR: the list of those
        on which LLVM did not fail. Costs `length` compilations.

        A function of its arguments alone; many threads may ask at once (`sandbox.shared`)."""
        episode = Episode(text, protocol, self.actions, self.length)
        while not episode.over:
            episode.step(int(self.scores(episode.observation()).argmax()))
        return episode.passes

    def save(self, path: Path) -> None:
        """One file: weights as safetensors, the names of the actions in its header."""
        from safetensors.numpy import save

        tensors = {}
        for i, (weight, bias) in enumerate(self.layers):
            tensors |= {f"{i}.weight": weight, f"{i}.bias": bias}
        about = {"actions": self.actions, "length": self.length}
        # One entry, as the order of several would differ from run to run.
        data = save(tensors, metadata={"policy": json.dumps(about)})
        config.write_atomic(path, data)


def load(path: Path) -> Policy:
    """A saved policy. Raises `InputError` that names the file if it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()["policy"])
            names = passes.check(about["actions"])
            layers = tuple(
                (file.get_tensor(f"{i}.weight"), file.get_tensor(f"{i}.bias"))
                for i in range(len(file.keys()) // 2)
            )
        policy = Policy(names, int(about["length"]), layers)
        if policy.scores(np.zeros(len(NAMES) + len(names), np.float32)).shape != (len(names),):
            raise ValueError("the weights do not fit the actions")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, InputError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"{path}: no usable policy ({reason}); `llmopt train --rivals` makes it"
        ) from None
    return policy


def train(
    functions: Sequence[str],
    protocol: str,
    settings: Settings,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> Policy:
    """Learn by PPO to order passes on functions (normalised IR) under a protocol.

    `on_step` is told of each step. Training ends after the update that reaches
    `settings.timesteps`, on the CPU; deterministic by `seed`. Raises `InputError` without functions
    or actions, and where LLVM does not take a function.
    """
    from stable_baselines3 import PPO

    if not functions or not settings.actions:
        raise InputError("AutoPhase needs functions to learn from and passes to choose from")
    learner = PPO(
        "MlpPolicy",
        environment(functions, protocol, settings),
        n_steps=settings.episodes * settings.length,
        batch_size=settings.length,
        learning_rate=settings.learning_rate,
        ent_coef=settings.entropy,
        policy_kwargs={"net_arch": list(settings.hidden)},
        seed=seed,
        device="cpu",
    )

    def told(*_: object) -> bool:
        if on_step:
            on_step(1)
        return True

    learner.learn(settings.timesteps, callback=told)
    modules = [*learner.policy.mlp_extractor.policy_net, learner.policy.action_net]
    arrays = [tuple(p.detach().numpy().copy() for p in m.parameters()) for m in modules]
    return Policy(settings.actions, settings.length, tuple(pair for pair in arrays if pair))
