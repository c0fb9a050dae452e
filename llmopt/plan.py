"""What a model takes: parameters, memory and time, by arithmetic, before anything is built.

The counts follow from Llama's shape. Memory is that of mixed-precision training as `train` does it:
float32 weights, gradients and moments, activations kept for the backward pass. Activations are an
estimate, checked against measured peaks in `benchmarks/train.py`; what frameworks, allocators and
communication take on top is not in it.
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
    size = 2 if precision == "bf16" else FLOAT
    # Kept of a layer: two norms' inputs and outputs, queries, keys, values before and after their
    # rotation, attention's sum; gate, up, their product and the gate's sigmoid.
    layer = (4 * FLOAT + 7 * size) * p.width + 4 * size * p.ffn
    kept = p.width * FLOAT if checkpointed else layer
    logits = vocabulary * (size + 2 * FLOAT)  # as computed, as float32, and their softmax
    activations = tokens_per_batch * (p.layers * kept + checkpointed * layer + logits)
    return Plan(
        preset,
        count,
        FLOAT * count // devices,
        FLOAT * count // devices,
        FLOAT * moments // devices,
        activations,
        operations(preset, vocabulary, length),
    )
