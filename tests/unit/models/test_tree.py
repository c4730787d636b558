"""Prompts that responses share: how they lie in a row, and what attention along the tree reads."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import flex_attention

from posttrain.models.batching import pad_rows
from posttrain.models.tree.attention import attend_along, block_mask
from posttrain.models.tree.layout import Groups, lay_end_to_end, lay_out, lay_out_to_predict, visible

ROWS = [([5, 6, 7], [[8, 9], [], [10]]), ([11], [[12, 13, 14]]), ([15, 16], [])]
"""An empty response, a prompt of one token with one response, and a prompt without any."""


def test_a_row_by_hand() -> None:
    ids_1T, groups = lay_out(ROWS)
    assert ids_1T.tolist() == [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]]
    assert groups.positions().tolist() == [0, 1, 2, 3, 4, 3, 0, 1, 2, 3, 0, 1]
    assert groups.num_tokens == 12 and groups.longest == 5
    # the empty response ends with its prompt, at 7
    assert groups.last_tokens().tolist() == [4, 2, 5, 9]


def test_a_row_to_predict_by_hand() -> None:
    ids_1T, labels_1T, groups = lay_out_to_predict(ROWS)
    # 7 begins each response of the first group, 11 the one of the second, whose shared part is empty
    assert ids_1T.tolist() == [[5, 6, 7, 8, 9, 7, 7, 10, 11, 12, 13, 14, 15]]
    assert labels_1T.tolist() == [[-100, -100, -100, 8, 9, -100, -100, 10, -100, 12, 13, 14, -100]]
    assert groups.positions().tolist() == [0, 1, 2, 3, 4, 2, 2, 3, 0, 1, 2, 3, 0]
    with pytest.raises(ValueError, match="prompt 1 has no token"):
        lay_out_to_predict([([1], [[2]]), ([], [[3]])])


def test_who_sees_whom_by_hand() -> None:
    groups = Groups((2, 1), ((2, 1), (1,)))
    expected = [
        "1000000",
        "1100000",
        "1110000",  # the first response
        "1111000",
        "1100100",  # the second does not see the first
        "0000010",  # nor does the next group
        "0000011",
    ]
    assert visible(groups).int().tolist() == [[int(bit) for bit in row] for row in expected]
    narrow = visible(groups, window=2).int().tolist()
    # by positions along the branch: the second response sees the last token of its prompt, at the distance of 1
    assert [narrow[3], narrow[4]] == [[0, 0, 1, 1, 0, 0, 0], [0, 1, 0, 0, 1, 0, 0]]


def test_what_rows_begin_alike_with_is_there_once() -> None:
    system, other = list(range(100, 130)), list(range(200, 240))
    rows = [
        [*system, 1, 2],
        [*other, 3],
        [*system, 4],
        [*system[:15], 5],  # too little in common
        [*other, 6, 7, 8],
        other,
        [9],
    ]
    ids_BT, mask_BT = pad_rows(rows, 0)
    ids_1T, place_BT, groups = lay_end_to_end(ids_BT, [len(row) for row in rows])
    assert ids_1T.tolist() == [[9, *system[:15], 5, *system, 1, 2, 4, *other, 3, 6, 7, 8]]
    assert groups == Groups((1, 16, 30, 40), ((), (), (2, 1), (0, 1, 3)))
    assert torch.equal(ids_1T[0, place_BT][mask_BT == 1], ids_BT[mask_BT == 1])
    assert torch.equal(groups.positions()[place_BT][mask_BT == 1], mask_BT.nonzero()[:, 1])
    alone_1T, _, apart = lay_end_to_end(ids_BT, [len(row) for row in rows], share=False)
    assert alone_1T.tolist() == [[token for row in rows for token in row]] and apart.prompts == tuple(map(len, rows))


def test_rows_that_begin_with_the_same_word_alone_share_nothing_for_it() -> None:
    rows = [[1, *range(2, 40), 50], [1, *range(2, 40), 60], [1, *range(70, 90)], [1, *range(70, 90), 3]]
    ids_BT, _ = pad_rows(rows, 0)
    ids_1T, _, groups = lay_end_to_end(ids_BT, [len(row) for row in rows])
    assert groups == Groups((39, 21), ((1, 1), (0, 1))) and ids_1T.numel() == groups.num_tokens


def random_states(groups: Groups, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (1, groups.num_tokens, 3, 8)
    made = (torch.randn(shape, generator=generator, dtype=dtype).transpose(1, 2) for _ in range(3))
    query, key, value = (part.requires_grad_() for part in made)
    return query, key, value


LONG = Groups((40, 1, 7, 33, 0), ((30, 0, 41), (2,), (), (65, 1), (6, 3)))


@pytest.mark.parametrize(("window", "cap"), [(None, None), (9, None), (1000, None), (None, 0.7), (9, 0.7)])
def test_attention_and_its_gradients_are_those_of_the_whole_mask(window: int | None, cap: float | None) -> None:
    query, key, value = states = random_states(LONG, torch.float64)
    scores = query @ key.transpose(2, 3) * 0.3
    if cap is not None:
        scores = cap * torch.tanh(scores / cap)
    weights = scores.masked_fill(~visible(LONG, window), float("-inf")).softmax(-1)
    expected = weights @ value
    read = attend_along(LONG, states, 0.3, window, cap)
    # a cap needs weights in single precision, as models compute them
    exact = {"atol": 1e-5, "rtol": 1e-5} if cap is not None else {"atol": 1e-12, "rtol": 1e-12}
    torch.testing.assert_close(read, expected, **exact)
    signal = torch.randn(read.shape, generator=torch.Generator().manual_seed(1), dtype=read.dtype)
    found, wanted = (torch.autograd.grad(out, states, signal) for out in (read, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, **exact)


def test_attention_under_autocast_rounds_as_that_of_torch() -> None:
    states = random_states(LONG, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        read = attend_along(LONG, states)
        expected = functional.scaled_dot_product_attention(*states, attn_mask=visible(LONG))
    assert read.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(read, expected, atol=0.03, rtol=0.03)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("window", [None, 9])
def test_the_mask_of_flex_attention_is_the_tree(window: int | None) -> None:
    states = [part.detach() for part in random_states(LONG, torch.float32)]
    read = flex_attention(*states, block_mask=block_mask(LONG, torch.device("cpu"), window))
    expected = functional.scaled_dot_product_attention(*states, attn_mask=visible(LONG, window))
    torch.testing.assert_close(read, expected, atol=1e-5, rtol=1e-5)
