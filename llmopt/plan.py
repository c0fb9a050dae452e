"""What a model takes: parameters, memory and time, by arithmetic, before anything is built.

The counts follow from Llama's shape. Memory is that of mixed-precision training as `train` does it:
float32 weights, gradients and moments, activations kept for the backward pass (a test compares them
with what PyTorch saves). What frameworks, allocators and communication take on top is not in it;
`benchmarks/train.py` puts the measured peak of a whole process beside the plan.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmopt import model

FLOAT = 4  # bytes of a float32


@dataclass(frozen=True)
class Plan:
    """Bytes on each device, and floating-point operations a token, of training one preset."""

    preset: str
    parameters: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    operations: int  # a token, forward and backward

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations

    def seconds(self, tokens: float, operations_per_second: float, devices: int = 1) -> float:
        """How long `tokens` take where each device does so many operations a second in training."""
        return tokens * self.operations / (operations_per_second * devices)


def count_parameters(preset: str, vocabulary: int) -> int:
    """Trainable parameters from the shape alone; `model.parameters` counts those of the model."""
    p = model.shape(preset)
    layer = 4 * p.width**2 + 3 * p.width * p.ffn + 2 * p.width
    return p.layers * layer + p.width + vocabulary * p.width * (1 if p.tied else 2)


def operations(preset: str, vocabulary: int, length: int) -> int:
    """Floating-point operations of training on one token of a text of `length` tokens: two a
    parameter in a matrix product and one attention over half the text on average, three times
    (forward, and backward for inputs and weights). Looking a token up is none."""
    p = model.shape(preset)
    matrices = p.layers * (4 * p.width**2 + 3 * p.width * p.ffn) + vocabulary * p.width
    attention = p.layers * 2 * p.width * length  # scores and sums, each 2 x width x length / 2
    return 3 * (2 * matrices + attention)


def _size(precision: str) -> int:
    return 2 if precision == "bf16" else FLOAT


def kept(preset: str, precision: str = "no") -> int:
    """Bytes a token that one layer keeps for the backward pass.

    In float32: inputs and normalised inputs of two norms. At the size of a matrix product: what
    each matrix reads (three different texts; halves are cast anew for each of six), queries, keys
    and values, keys and values joined with the prompt's (about half of all tokens are a prompt's),
    attention's sum; and of the gated network gate, its sigmoid's product, up, and their product.
    """
    p, size = model.shape(preset), _size(precision)
    read = 6 if precision == "bf16" else 3
    return int((4 * FLOAT + (read + 5.5) * size) * p.width + 4 * size * p.ffn)


def plan(
    preset: str,
    vocabulary: int,
    tokens_per_batch: int,
    length: int,
    optimizer: str = "adamw",
    devices: int = 1,
    precision: str = "no",
    checkpointed: bool = False,
) -> Plan:
    """What training takes on each of `devices` over which weights, gradients and moments are spread
    (FSDP), with batches of `tokens_per_batch` tokens a device in texts of `length` tokens.

    With `checkpointed` only each layer's input is kept, and the layer computed again when it is
    needed.
    """
    p = model.shape(preset)
    count = count_parameters(preset, vocabulary)
    embedding = count - p.layers * (4 * p.width**2 + 3 * p.width * p.ffn)
    moments = 2 * count if optimizer == "adamw" else 2 * embedding + (count - embedding)
    logits = vocabulary * (_size(precision) + 2 * FLOAT)  # as computed, as float32, their softmax
    layer = kept(preset, precision)
    inputs = p.width * FLOAT
    layers = p.layers * inputs + layer if checkpointed else p.layers * layer
    activations = tokens_per_batch * (layers + logits)
    return Plan(
        preset,
        count,
        FLOAT * count // devices,
        FLOAT * count // devices,
        FLOAT * moments // devices,
        activations,
        operations(preset, vocabulary, length),
    )
