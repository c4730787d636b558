"""The random numbers of a sample: a function of seed, prompt, number of the sample and position, and of nothing else.

They are counter-based (Philox, Salmon et al. 2011), so a sample draws the same whatever runs beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DRAWS = 2
"""Uniforms that one token takes: one chooses a block of the vocabulary, one a token of the block."""
BLOCK = 64
"""Positions whose uniforms are made at once."""


def sample_key(seed: int, prompt: Sequence[int], index: int) -> int:
    """Return the 128-bit key of one sample of a prompt, so that different prompts draw independently."""
    content = np.array([seed, index, *prompt], np.int64).tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=16).digest(), "little")


def uniforms(key: int, block: int) -> NDArray[np.float64]:
    """Return the uniforms in [0, 1) of one block of positions: shape (BLOCK, DRAWS)."""
    return _generator(key, block, 0).random((BLOCK, DRAWS))


def redraw_uniforms(key: int, position: int, attempt: int) -> NDArray[np.float64]:
    """Return the uniforms of a position whose first draws were refused: shape (DRAWS,), ``attempt`` from 1."""
    return _generator(key, position, attempt).random(DRAWS)


def _generator(key: int, place: int, stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, place, stream]))
