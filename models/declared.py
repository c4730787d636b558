"""What the configuration of a pretrained model declares: how many tokens it takes, and which ones end a text."""

from __future__ import annotations

import itertools

from transformers import PretrainedConfig

from posttrain.data.config.tokenize import POSITIONS


def context_length(config: PretrainedConfig) -> int | None:
    """Return how many tokens a model takes, of its text part where it has others; None where it does not say."""
    text = config.get_text_config()
    return next((length for name in POSITIONS if (length := getattr(text, name, None))), None)


def rope_border(config: PretrainedConfig) -> int | None:
    """Return the number of tokens beyond which a model turns its positions by other factors; None where it never does.

    Longrope does: one forward has the factors of its longest row, so a row would depend on those beside it, and keys of
    before the border would not fit those behind it.
    """
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return None
    border = rope.get("original_max_position_embeddings") or getattr(text, "original_max_position_embeddings", None)
    return int(border) if border else None


def end_token_ids(*given: int | list[int] | None) -> list[int]:
    """Return each end token once, in the order given; a configuration has one, a list of them, or none."""
    ids = itertools.chain.from_iterable(ids if isinstance(ids, list) else [ids] for ids in given)
    return list(dict.fromkeys(i for i in ids if i is not None))
