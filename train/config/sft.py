"""Knobs of supervised finetuning."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from posttrain.stage.schema import schema
from posttrain.train.config.common import RowsConfig


@schema
class SftConfig(RowsConfig):
    """Supervised finetuning."""

    held_out: ClassVar[tuple[str, ...]] = ("loss", "token_accuracy")

    packing: bool = False
    """Pack rows into sequences of `pack_length` tokens without letting them see each other."""
    pack_length: int = Field(default=1024, ge=16)
    """Tokens of a pack, into which any row must fit; it may exceed what the model takes, since each row begins anew."""
    neftune_alpha: float | None = Field(default=None, gt=0)
    """Noise on the embeddings in training, this over the square root of a row's numbers (Jain et al. 2023); None is
    none."""
    loss: Literal["nll", "dft"] = "nll"
    """Negative log-likelihood, or dynamic finetuning (Wu et al. 2025), which weighs a token by its probability."""
