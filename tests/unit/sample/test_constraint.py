"""Bit masks of tokens."""

import numpy as np
import pytest
import torch

from posttrain.sample.structured.constraint import apply_bitmask, mask_words, unpack_bitmask


@pytest.mark.parametrize("vocabulary", [1, 31, 32, 33, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_clears_what_its_bits_do_not_allow(vocabulary: int, dtype: torch.dtype) -> None:
    random = np.random.default_rng(vocabulary)
    allowed = random.random((3, vocabulary)) < 0.5
    bitmask = np.zeros((3, mask_words(vocabulary)), np.int32)
    for row, token in np.argwhere(allowed):
        bitmask.view(np.uint32)[row, token // 32] |= np.uint32(1 << int(token) % 32)
    logits = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = [
        [float(logits[row, token]) if allowed[row, token] else -np.inf for token in range(vocabulary)]
        for row in range(3)
    ]
    assert unpack_bitmask(bitmask, vocabulary).tolist() == allowed.tolist()
    apply_bitmask(logits, bitmask)
    assert logits.tolist() == expected
