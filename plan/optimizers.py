"""What optimizers keep of the parameters that they move, beside the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from posttrain.plan.blocks import Experts
from posttrain.plan.model import Head, ModelShape, count_adapter, count_head, count_parameters, targeted_maps

OptimizerKind = Literal["adamw", "adamw_8bit", "adafactor", "muon", "sgd", "sgd_momentum"]
KEEPS: dict[OptimizerKind, str] = {
    "adamw": "AdamW: two float32 means of each",
    "adamw_8bit": "8-bit AdamW: two bytes of each and a float32 scale per 256 (bitsandbytes); the embedding in float32",
    "adafactor": "Adafactor: sums over rows and columns of matrices (Shazeer and Stern 2018), vectors whole",
    "muon": "Muon: one float32 mean of matrices (Jordan et al. 2024), AdamW's two of everything else",
    "sgd": "SGD: nothing",
    "sgd_momentum": "SGD with momentum: one float32 mean of each",
}
_EIGHT_BIT = 2 * (1 + 4 / 256)
"""Bytes of a parameter in 8-bit AdamW."""


def optimizer_bytes(
    shape: ModelShape,
    head: Head = "lm",
    kind: OptimizerKind = "adamw",
    *,
    adapter: bool = False,
    rank: int = 16,
    target_modules: str | Sequence[str] = "all-linear",
) -> int:
    """Return the bytes that an optimizer keeps of a whole model, or of an adapter and the head that learns with it.

    A copy of the weights in float32, which engines keep beside bfloat16 ones, is not among them.
    """
    vocabulary = 0 if adapter else shape.vocab_size * shape.hidden_size
    trained = count_parameters(shape, head)
    if adapter:
        trained = count_adapter(shape, rank, target_modules) + (count_head(shape, head) if head == "score" else 0)
    flat = {"adamw": 8, "sgd": 0, "sgd_momentum": 4}
    if kind in flat:
        return flat[kind] * trained
    if kind == "adamw_8bit":
        return round(_EIGHT_BIT * (trained - vocabulary)) + 8 * vocabulary
    matrices = list(_of_adapter(shape, rank, target_modules) if adapter else _of_blocks(shape))
    if kind == "muon":
        moved = sum(rows * columns for rows, columns, count in matrices if count == 1)
        return 4 * moved + 8 * (trained - moved)
    matrices += _of_vocabulary(shape, head, adapter)
    whole = trained - sum(rows * columns * count for rows, columns, count in matrices)
    return 4 * sum((rows + columns) * count for rows, columns, count in matrices) + 4 * whole


def _of_blocks(shape: ModelShape) -> Iterator[tuple[int, int, int]]:
    """Yield rows, columns and number of the matrices of all layers; experts are stacked in one tensor."""
    for block in shape.layers:
        yield from ((*sizes, 1) for sizes in block.maps().values())
        if isinstance(block.feed_forward, Experts):
            part = block.feed_forward
            yield part.hidden, 2 * part.inner, part.count
            yield part.inner, part.hidden, part.count


def _of_adapter(shape: ModelShape, rank: int, target_modules: str | Sequence[str]) -> Iterator[tuple[int, int, int]]:
    for inputs, outputs in targeted_maps(shape, target_modules):
        yield rank, inputs, 1
        yield outputs, rank, 1


def _of_vocabulary(shape: ModelShape, head: Head, adapter: bool) -> list[tuple[int, int, int]]:
    scores = [(1, shape.hidden_size, 1)] if head == "score" else []
    if adapter:
        return scores
    times = 1 if head == "score" or shape.tied_embeddings else 2
    return [(shape.vocab_size, shape.hidden_size, 1)] * times + scores
