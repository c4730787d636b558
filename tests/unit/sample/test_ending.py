"""Where a sample ends: at every token that ends one, and at the first stop text, which is not part of it."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from posttrain.data.chat.tokenizer import prepare_tokenizer
from posttrain.models.tokenizer import train_tokenizer
from posttrain.sample.engine.ending import Ending, end_tokens, special_stops


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = train_tokenizer(["one two three four. Question: five"] * 4, 300, 64)
    prepare_tokenizer(tokenizer, "chatml")
    return tokenizer


def test_the_models_own_end_tokens_count_beside_the_tokenizers(tokenizer: PreTrainedTokenizerBase) -> None:
    shape = LlamaConfig(
        vocab_size=320, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(shape)
    eos = tokenizer.eos_token_id
    for own, expected in ([5, 7], {eos, 5, 7}), (5, {eos, 5}), (None, {eos}):
        model.generation_config.eos_token_id = own
        assert end_tokens(model, tokenizer) == expected


def test_the_text_ends_before_the_first_stop_text_and_without_the_end_token(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("one two. Question: three. Question: four", add_special_tokens=False).input_ids
    ending = Ending(tokenizer, frozenset({tokenizer.eos_token_id}), ("Question:", "four"))
    assert ending.text(ids) == "one two. "
    assert ending.reached(ids)
    short = tokenizer("one two", add_special_tokens=False).input_ids
    assert not ending.reached(short)
    assert ending.reached([*short, tokenizer.eos_token_id])
    assert ending.text([*short, tokenizer.eos_token_id]) == "one two"


def test_a_stop_text_that_is_a_special_token_ends_a_sample(tokenizer: PreTrainedTokenizerBase) -> None:
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    ending = Ending(tokenizer, frozenset({tokenizer.eos_token_id}), ("<|im_start|>", "four"))
    ids = tokenizer("one two", add_special_tokens=False).input_ids
    assert not ending.reached(ids)
    assert ending.reached([*ids, start])
    assert ending.text([*ids, start]) == "one two"
    assert special_stops(tokenizer, ["<|im_start|>", "four"]) == ([start], ["four"])
