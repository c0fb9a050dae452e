"""How fast is a training step, beside the machine's own matrix product, and what memory it takes.

The step is `train`'s: objective, backward pass, clipping and optimizer, on made-up functions of the
usual lengths. Utilisation is the step's floating-point operations (`plan.operations`) a second over
those of a plain square matrix product in the same precision, measured between the steps: the
machine may be shared. Memory is the peak of a process that does nothing else, less what it had
before the model was built.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VOCABULARY = 2048
PROMPT, ANSWERS = 400, (80, 80, 6, 6)  # tokens of one function and of its branches
SIDE = 2048  # of the square matrices


def _synchronise(torch, device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _product(torch, device, dtype) -> float:
    """Floating-point operations a second of a matrix product, the best of five."""
    side = 4 * SIDE if device.type == "cuda" else SIDE
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(5):
        _synchronise(torch, device)
        started = time.perf_counter()
        a @ b
        _synchronise(torch, device)
        best = max(best, 2 * side**3 / (time.perf_counter() - started))
    return best


def one(preset: str, precision: str, steps: int, tokens_per_batch: int, compiled: bool) -> dict:
    """Measure in this process."""
    sys.path.insert(0, str(ROOT))
    import torch
    from accelerate import Accelerator

    from llmopt import dataset, model, plan, train

    accelerator = Accelerator()
    device = accelerator.device
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    settings = {"tokens_per_batch": tokens_per_batch, "precision": precision}
    config = train.TrainConfig(preset, steps=steps, **settings)
    llama = model.build(preset, VOCABULARY, 0)
    if device.type == "cpu":
        model.prefer_speed(llama, halves=precision == "bf16")
    objective = train.Objective(llama, config).to(device)
    made = train.optimizers(objective.llama, config)
    wrapped = accelerator.prepare_model(objective)
    if compiled:
        wrapped.compile(dynamic=True)
    draw = torch.Generator().manual_seed(0)

    def ids(n: int) -> list[int]:
        return torch.randint(VOCABULARY, (n,), generator=draw).tolist()

    branches = [(ids(n), [-1, -1] + [1] * 4 + [3] * (n - 6), 1.0) for n in ANSWERS]
    rows = [(ids(PROMPT), branches)] * max(1, tokens_per_batch // (PROMPT + sum(ANSWERS)))
    batch = dataset.assemble(rows, 0).to(device)
    products, times = [], []
    for step in range(steps + 2):  # the first two warm up
        if step >= 2:
            products.append(_product(torch, device, dtype))
        _synchronise(torch, device)
        started = time.perf_counter()
        loss, _, _ = wrapped(batch)
        accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        for optimizer in made:
            optimizer.step()
            optimizer.zero_grad()
        _synchronise(torch, device)
        if step >= 2:
            times.append(time.perf_counter() - started)
    per_token = plan.operations(preset, VOCABULARY, PROMPT + ANSWERS[0])
    rate = batch.tokens / min(times)
    peak = (
        torch.cuda.max_memory_allocated()
        if device.type == "cuda"
        else 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)
    )
    expected = plan.plan(preset, VOCABULARY, batch.tokens, PROMPT, "muon", 1, precision)
    return {
        "preset": preset,
        "precision": precision,
        "compiled": compiled,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "parameters": expected.parameters,
        "tokens_per_step": batch.tokens,
        "tokens_per_second": rate,
        "operations_per_second": rate * per_token,
        "product_operations_per_second": max(products),
        "utilisation": rate * per_token / max(products),
        "peak_bytes": peak,
        "planned_bytes": expected.total,
    }


def measure(
    preset: str, precisions: list[str], steps: int, tokens_per_batch: int, compiled: bool = False
) -> list[dict]:
    """One row a precision, each from a process of its own."""
    rows = []
    for precision in precisions:
        settings = json.dumps([preset, precision, steps, tokens_per_batch, compiled])
        done = subprocess.run(
            [sys.executable, __file__, settings], stdout=subprocess.PIPE, text=True, check=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


if __name__ == "__main__":
    print(json.dumps(one(*json.loads(sys.argv[1]))))
