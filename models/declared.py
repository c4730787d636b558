"""What the configuration of a pretrained model declares: how many tokens it takes, and which ones end a text."""

from __future__ import annotations

import itertools

from transformers import PretrainedConfig

from posttrain.data.config.tokenize import POSITIONS


def context_length(config: PretrainedConfig) -> int | None:
    """Return how many tokens a model takes, of its text part where it has others; None where it does not say."""
    text = config.get_text_config()
    return next((length for name in POSITIONS if (length := getattr(text, name, None))), None)


def end_token_ids(*given: int | list[int] | None) -> list[int]:
    """Return each end token once, in the order given; a configuration has one, a list of them, or none."""
    ids = itertools.chain.from_iterable(ids if isinstance(ids, list) else [ids] for ids in given)
    return list(dict.fromkeys(i for i in ids if i is not None))
