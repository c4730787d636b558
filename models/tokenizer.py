"""Train a byte-level BPE tokenizer with our chat markers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from posttrain.data.chat.tokenizer import CHATML_END, CHATML_START, PAD_TOKEN
from posttrain.data.records import Demonstration


def train_tokenizer(texts: Iterable[str], vocab_size: int, max_length: int) -> PreTrainedTokenizerBase:
    """Return a tokenizer of at most ``vocab_size`` tokens, among them padding and the markers of ChatML.

    Every digit is a token of its own, which makes arithmetic learnable for small models. There is no BOS token: every
    conversation begins with a marker.
    """
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD_TOKEN, CHATML_START, CHATML_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD_TOKEN, eos_token=CHATML_END, model_max_length=max_length
    )


def turns(records: Iterable[Demonstration]) -> Iterator[str]:
    """Yield the turns of demonstrations as ChatML writes them between its markers, role names included."""
    for record in records:
        for message in [*record.prompt, *record.completion]:
            yield f"{message.role}\n{message.content}"
