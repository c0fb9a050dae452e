import random
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from llmopt import autotune, ir, llvm, passes, sandbox
from llmopt.config import InputError
from llmopt.sandbox import Sandbox, shared

CRASHING = ("-Oz", "unify-loop-exits")  # on a switch that leaves a loop; LLVM 22.1.8


@pytest.fixture
def box():
    with Sandbox() as made:
        yield made


def workers() -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if "llmopt.sandbox" in " ".join(child.cmdline())
    ]


def test_run_gives_what_llvm_gives_in_process(box, sample):
    lists = [("-Oz",), (), ("sroa<modify-cfg>", "simplifycfg")]
    with llvm.Module(sample["sieve"], "minsize") as module:
        expected = [llvm.apply(module, names, text=True) for names in lists]
    found = box.run(sample["sieve"], "minsize", lists, text=True)
    assert [(r.passes, r.count, r.text) for r in found] == [
        (r.passes, r.count, r.text) for r in expected
    ]


def test_walk_counts_every_prefix(box, sample):
    names = ("sroa<modify-cfg>", "simplifycfg", "licm", "-Oz")
    steps = box.walk(sample["sieve"], "stripped", [names])[0]
    prefixes = [names[: n + 1] for n in range(len(names))]
    assert [step.passes for step in steps] == prefixes
    runs = box.run(sample["sieve"], "stripped", prefixes)
    assert [step.count for step in steps] == [run.count for run in runs]


def test_explorations_count_what_walks_count_and_look_up_what_is_known(box, sample):
    rng = random.Random(3)
    lists = [autotune.random_list(rng) for _ in range(40)]
    for protocol in ("stripped", "minsize"):
        walks = box.walk(sample["sieve"], protocol, lists)
        explored = box.explore(sample["sieve"], protocol, lists)
        assert [walk.counts for walk in explored] == [
            [step.count for step in steps if step.ok] for steps in walks
        ]
        assert 0 < sum(walk.new for walk in explored) < sum(map(len, lists))
        again = box.explore(sample["sieve"], protocol, lists, fresh=False)
        assert [walk.counts for walk in again] == [walk.counts for walk in explored]
        assert not any(walk.new for walk in again)
        assert any(walk.new for walk in box.explore(sample["sieve"], protocol, lists))


def test_an_exploration_that_crashes_is_one_walk_s(box, sample):
    walks = box.explore(sample["parse_integer"], "stripped", [("-Oz",), CRASHING, ("-O1",)])
    assert [walk.failure and walk.failure.status for walk in walks] == [None, "crash", None]
    assert walks[1].failure.passes == CRASHING and not walks[1].counts
    assert box.explore("garbage", "stripped", [("-Oz",)])[0].failure.status == "parse"


def test_a_killed_worker_takes_nothing_with_it(box, sample):
    rng = random.Random(5)
    lists = [autotune.random_list(rng) for _ in range(60)]
    expected = box.explore(sample["sieve"], "stripped", lists)
    found = box.explore(sample["sieve"], "stripped", lists[:20])
    box._worker.kill()  # between two requests
    box._worker.wait()
    found += box.explore(sample["sieve"], "stripped", lists[20:40], fresh=False)
    killer = threading.Timer(0.01, box._worker.kill)  # during one
    killer.start()
    found += box.explore(sample["sieve"], "stripped", lists[40:], fresh=False)
    killer.join()
    assert found == expected


def test_a_list_at_which_workers_are_killed_again_and_again_is_given_up(box, sample, monkeypatch):
    start = Sandbox._start

    def doomed(self):
        worker = start(self)
        worker.kill()
        return worker

    monkeypatch.setattr(Sandbox, "_start", doomed)
    run = box.run(sample["gcd"], "stripped", [("-Oz",)])[0]
    assert run.status == "memory" and run.signal == signal.SIGKILL


def test_a_crash_costs_one_candidate(box, sample):
    text = sample["parse_integer"]
    runs = box.run(text, "stripped", [("-Oz",), CRASHING, ("-O1",)])
    assert [run.status for run in runs] == ["ok", "crash", "ok"]
    assert runs[1].passes == CRASHING and runs[1].signal in (signal.SIGSEGV, signal.SIGABRT)
    assert runs[1].message
    walked = box.walk(text, "stripped", [CRASHING, ("-Oz",)])
    assert [steps[-1].status for steps in walked] == ["crash", "ok"]
    assert box.deaths == 2


def test_what_llvm_says_of_an_abort_is_found_in_its_stack_dump():
    said = (
        "PLEASE submit a bug report to the LLVM issue tracker\n"
        "LLVM ERROR: Instruction Combining did not reach a fixpoint after 1 iterations\n"
        'Stack dump:\n0.\tRunning pass "instcombine"\n #0 0x00007f llvm::sys::Print\n'
    )
    assert sandbox._first_words(said).startswith("LLVM ERROR: Instruction Combining")
    assert sandbox._first_words("Killed\n") == "Killed"


def test_a_hang_is_ended_and_named(sample):
    endless = ("function-simplification<O3>",) * 100_000
    with Sandbox(seconds=1) as hasty:
        runs = hasty.run(sample["knapsack"], "stripped", [("-Oz",), endless, ("-Oz",)])
    assert [run.status for run in runs] == ["ok", "timeout", "ok"]
    assert "no answer in 1 s" in runs[1].message and runs[1].passes == endless


def test_a_memory_blow_up_is_ended_and_named(box, sample):
    body = "\n".join(f"%{i + 2} = add i32 %0, {i}" for i in range(1_000_000))
    with Sandbox(memory_mb=400) as small:
        big = f"define void @f(i32 %0) {{\n{body}\nret void\n}}\n"
        run = small.check([big, sample["gcd"]])
    assert run[0].status == "memory" and "400 MiB" in run[0].message
    assert run[1].ok


def test_invalid_ir_is_a_result(box, sample):
    runs = box.run("define i32 @f( {", "stripped", [("-Oz",), ("-O1",)])
    assert [run.status for run in runs] == ["parse", "parse"] and "expected type" in runs[0].message
    assert box.walk("garbage", "stripped", [("-Oz",)])[0][-1].status == "parse"
    assert box.run(sample["gcd"], "stripped", [("-Oz",)])[0].ok


def test_an_unknown_pass_is_refused_before_anything_runs(box, sample):
    with pytest.raises(InputError, match="unknown pass"):
        box.run(sample["gcd"], "stripped", [("-Oz",), ("gvm",)])
    assert box._worker is None


def mutations(sample, how_many):
    """IR texts cut off, with bytes changed, lines dropped, repeated or exchanged."""
    rng = random.Random(0)
    texts = list(sample.values())
    for _ in range(how_many):
        text = rng.choice(texts)
        lines = text.splitlines()
        at, to = rng.randrange(len(lines)), rng.randrange(len(lines))
        kind = rng.randrange(5)
        if kind == 0:
            yield text[: rng.randrange(len(text))]
        elif kind == 1:
            place = rng.randrange(len(text))
            yield text[:place] + chr(rng.randrange(1, 300)) + text[place + 1 :]
        elif kind == 2:
            yield "\n".join(lines[:at] + lines[at + 1 :])
        elif kind == 3:
            lines[at], lines[to] = lines[to], lines[at]
            yield "\n".join(lines)
        else:
            yield "\n".join(lines[:at] + [lines[to]] + lines[at:])


@pytest.mark.slow
def test_a_thousand_damaged_texts_and_300_long_lists(sample):
    """The parent lives, each has a typed result, no worker is left, memory does not grow."""
    rng = random.Random(2)
    single = [name for name in passes.SPACE if name not in passes.META]
    known = {"ok", "parse", "verify", "refused", "invalid", "crash", "timeout", "memory"}
    functions = list(sample.values())
    memory, before = [], set(workers())
    with Sandbox(seconds=20) as box:
        for batch in range(10):
            texts = list(mutations(sample, 100))
            runs = box.check(texts)
            assert len(runs) == 100 and {run.status for run in runs} <= known
            assert all(run.message for run in runs if not run.ok)
            assert all(run.text is not None and run.count is not None for run in runs if run.ok)
            for _ in range(30):
                names = rng.choices(single, k=rng.randint(1, 40))
                run = box.run(rng.choice(functions), "stripped", [names])[0]
                assert run.status in known and run.passes == tuple(names)
                assert run.ok or run.message
            memory.append(psutil.Process().memory_info().rss >> 10)
            if batch == 2:
                worker = psutil.Process(box._worker.pid).memory_info().rss >> 10
        last = psutil.Process(box._worker.pid).memory_info().rss >> 10
    assert set(workers()) == before
    assert memory[-1] - memory[2] < 20_000, f"KiB of the parent: {memory}"
    assert last - worker < 100_000, f"KiB of the worker: {worker} {last}"


def test_a_killed_parent_leaves_no_worker(sample, tmp_path):
    code = (
        "import sys\nfrom llmopt.sandbox import Sandbox\nbox = Sandbox(seconds=30)\n"
        "box.run(sys.argv[1], 'stripped', [()])\nprint(box._worker.pid, flush=True)\n"
        "while True: box.run(sys.argv[1], 'stripped', [('-O3',)] * 100)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, sample["gcd"]], stdout=subprocess.PIPE, text=True
    )
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.time() + 20
    while psutil.pid_exists(worker) and time.time() < deadline:
        time.sleep(0.05)
    assert not psutil.pid_exists(worker)


def test_interrupts_and_later_use(box, sample, monkeypatch):
    """An interrupt while answers are on their way must not shift later answers."""
    readline = []

    def interrupted(*args):
        readline.append(args)
        raise KeyboardInterrupt

    box.run(sample["gcd"], "stripped", [()])
    real = box._worker.stdout
    monkeypatch.setattr(box._worker, "stdout", type("Pipe", (), {
        "readline": interrupted, "close": real.close})())  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        box.run(sample["gcd"], "stripped", [("-O1",), ("-O2",)])
    assert readline
    assert box.run(sample["gcd"], "stripped", [("-Oz",)])[0].passes == ("-Oz",)


def test_shared_is_one_a_thread():
    assert shared() is shared()


def test_random_lists_through_a_walk_and_as_one_pipeline_agree(box, sample):
    rng = random.Random(3)
    differing = 0
    for text in list(sample.values())[:12]:
        lists = [autotune.random_list(rng) for _ in range(20)]
        walked = box.walk(text, "stripped", lists)
        for steps, run in zip(walked, box.run(text, "stripped", lists), strict=True):
            differing += steps[-1].count != run.count
    assert differing <= 2  # analyses that are kept between passes may decide otherwise


def test_ir_with_names_gets_numbers(box):
    named = "define i32 @f(i32 %x) {\nentry:\n%y = add i32 %x, 1\nret i32 %y\n}\n"
    assert box.check([named])[0].text == (
        "define i32 @f(i32 %0) {\n%2 = add i32 %0, 1\nret i32 %2\n}\n"
    )
    assert ir.count(named) == 2
