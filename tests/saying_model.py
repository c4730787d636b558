"""A model that says one text, whatever it is asked: each token makes the next one certain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from build_artifacts import WORDS, commit_artifact
from tokenizers import AddedToken
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from posttrain.data.chat.tokenizer import prepare_tokenizer
from posttrain.models.tokenizer import train_tokenizer

FIRST = "\n"
"""What the prompts of ChatML end with."""


def words_tokenizer(*added: str, special: Sequence[str] = ()) -> PreTrainedTokenizerBase:
    """Return a tokenizer with ChatML, whose words are tokens, and further tokens, special and other."""
    tokenizer = train_tokenizer([" ".join(WORDS)] * 4, 400, 512)
    prepare_tokenizer(tokenizer, "chatml")
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in added])
    tokenizer.add_tokens([AddedToken(text, special=True, normalized=False) for text in special], special_tokens=True)
    return tokenizer


def saying_model(tokenizer: PreTrainedTokenizerBase, said: str, first: str = FIRST) -> LlamaForCausalLM:
    """Return a model that says a text, of which no token occurs twice, behind a prompt that ends with ``first``.

    After the last token it says that token again. All layers add nothing, so that the output sees the last token alone.
    """
    tokens = [tokenizer(first, add_special_tokens=False).input_ids[-1], *tokenizer(said).input_ids]
    assert len(set(tokens)) == len(tokens), f"a token occurs twice in {tokenizer.convert_ids_to_tokens(tokens)}"
    size = -(-len(tokenizer) // 8) * 8
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=1024,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        layer = model.model.layers[0]
        for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight, model.lm_head.weight):
            weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        for token, following in zip(tokens, [*tokens[1:], tokens[-1]], strict=True):
            model.lm_head.weight[following, token] = 10
    return model.eval()


def build_saying_model(root: Path, said: str, *added: str, name: str = "saying-0001") -> Path:
    """Commit a `saying_model` whose tokenizer has further tokens."""
    directory = root / "artifacts" / name
    directory.mkdir(parents=True)
    tokenizer = words_tokenizer(*added)
    tokenizer.save_pretrained(str(directory))
    saying_model(tokenizer, said).save_pretrained(str(directory))
    return commit_artifact(directory, "model", "base")
