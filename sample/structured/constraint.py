"""What a grammar, or anything else that restricts the next token, is to the sampling engine; masks as bits.

Letters of array shapes: B rows of the batch, V tokens of the vocabulary, W = ceil(V / 32) words of 32 bits each, the
lowest bit of a word first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from posttrain.sample.sampling import Accept, Prompts, Sample, SamplingParams

Bitmask = npt.NDArray[np.int32]


class Constraint(Protocol):
    """The state of one running sample; a `ConstraintFactory` makes a fresh one for each.

    The engine calls `fill`, draws a token from what it allows, and passes it to `advance`; where that is refused, it
    calls `fill` again and draws again.
    """

    @property
    def ended(self) -> bool:
        """Whether nothing but the end is admitted now."""
        ...

    def fill(self, bitmask_W: Bitmask, tokens_left: int) -> None:
        """Set the bits of the tokens that may come next, EOS where the document may end, and clear all others.

        ``tokens_left`` counts the tokens that may still come, this one included and EOS not.
        """
        ...

    def advance(self, token: int) -> bool:
        """Take a token that `fill` or `forced` allowed.

        Returns False, and stays where it was, when no document that begins so fits into the tokens that are left. The
        next `fill` leaves that token out, so drawing again is drawing from the tokens that fit.
        """
        ...

    def forced(self) -> list[int]:
        """Return tokens that must come next, which need no forward pass each; `advance` takes them one by one."""
        ...


ConstraintFactory = Callable[[], Constraint]


class GeneratesUnder(Protocol):
    """What can sample under constraints."""

    tokenizer: PreTrainedTokenizerBase

    def generate(
        self,
        prompts: Prompts,
        params: SamplingParams | Sequence[SamplingParams],
        *,
        constraints: Sequence[ConstraintFactory | None] | None = None,
        accept: Accept | None = None,
    ) -> list[list[Sample]]:
        """Return the samples of each prompt, held to the constraint of the prompt, if it has one."""
        ...


def mask_words(vocabulary: int) -> int:
    """Return how many 32-bit words hold one bit per token."""
    return -(-vocabulary // 32)


def unpack_bitmask(bitmask_BW: Bitmask, vocabulary: int) -> Tensor:
    """Return a bit mask as a boolean tensor of shape (B, V)."""
    bits_BV = np.unpackbits(bitmask_BW.view(np.uint8), axis=-1, count=vocabulary, bitorder="little")
    return torch.from_numpy(bits_BV).view(torch.bool)


def apply_bitmask(logits_BV: Tensor, bitmask_BW: Bitmask) -> None:
    """Set the logits whose bit is clear to minus infinity, in place.

    Eight additive terms are looked up per byte of the mask: on CPU a fifth of the time of `masked_fill_`, whose
    branches follow the mask.
    """
    bytes_BN = torch.from_numpy(bitmask_BW.view(np.uint8)).to(logits_BV.device).int()
    terms_BNE = torch.nn.functional.embedding(bytes_BN, _byte_terms(logits_BV.dtype, logits_BV.device))
    logits_BV += terms_BNE.flatten(-2)[..., : logits_BV.shape[-1]]


@functools.cache
def _byte_terms(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return, for each of the 256 bytes, 0 where a bit is set and minus infinity where it is clear: shape (256, 8)."""
    bits = unpack_bitmask(np.arange(256, dtype=np.int32)[:, None], 8)
    return torch.zeros(256, 8, dtype=dtype).masked_fill_(~bits, -torch.inf).to(device)
