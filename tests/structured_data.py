"""What tests of structured output share: schemas of real-world shapes, and tokenizers made on the spot."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from llguidance import LLTokenizer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from posttrain.sample.structured.closing import Vocabulary

FOLDER = Path(__file__).parent / "schemas"
SHARED = Path(__file__).resolve().parents[1].parent / "shared"


def all_schemas() -> dict[str, dict[str, Any]]:
    """Return the schemas by file and name."""
    return {
        f"{file.stem}/{name}": schema
        for file in sorted(FOLDER.glob("*.json"))
        for name, schema in json.loads(file.read_text(encoding="utf-8")).items()
    }


@functools.cache
def json_tokenizer(size: int = 600) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE trained on the schemas, so that it has tokens of many characters and all single bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<eos>", "<pad>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([json.dumps(schema) for schema in all_schemas().values()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


@functools.cache
def json_vocabulary() -> Vocabulary:
    return Vocabulary.of(json_tokenizer())


def vocabulary_of(texts: list[str]) -> Vocabulary:
    """Return a vocabulary of a few tokens, and one more that ends a document."""

    class Given:
        is_tokenizer_wrapper = True
        tokens = [*(text.encode() for text in texts), b"<end>"]
        eos_token_id = len(texts)
        bos_token_id = None
        special_token_ids = [len(texts)]

        def __call__(self, text: str | bytes) -> list[int]:
            rest = text.encode() if isinstance(text, str) else text
            tokens = []
            while rest:
                length = next((n for n in range(longest, 0, -1) if rest[:n] in token_of), None)
                if length is None:
                    break
                tokens.append(token_of[rest[:length]])
                rest = rest[length:]
            return tokens

    pieces = [*(text.encode() for text in texts), b""]
    token_of = {piece: token for token, piece in enumerate(pieces) if piece}
    longest = max(map(len, pieces))
    return Vocabulary(LLTokenizer(Given(), slices=[]), pieces, token_of, longest)
