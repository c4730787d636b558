"""The policy as a stage trains it: loaded, given its adapter, without dropout where a method compares policies."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers.integrations import deepspeed as hf_deepspeed

from posttrain.models.adapters import make_trainable, weights_dtype, without_dropout
from posttrain.models.load import is_adapter, load_policy, new_token_ids
from posttrain.stage.engine import engine_asked_for
from posttrain.stage.spec import Distributed
from posttrain.train.config.common import AdapterConfig, Dtype


def trainable_policy(
    source: Path,
    adapter: AdapterConfig,
    dtype: Dtype,
    attention: str,
    distributed: Distributed,
    where: str,
    *,
    dropout: bool = False,
    whole: bool = False,
) -> Any:
    """Return the policy of ``source``, ready to train.

    ``dtype`` is the precision of the forward pass, ``where`` the stage's configuration path. Dropout stays on with
    ``dropout`` alone. ``whole`` loads the weights whole also under ZeRO-3, as an adapter's always are.
    """
    four_bit = adapter.kind == "qlora"
    loaded_in = weights_dtype(adapter.kind, dtype)
    with loaded_whole(whole or is_adapter(source)):
        policy = load_policy(source, loaded_in, attention, trainable_adapter=True, four_bit=four_bit)
        policy = trained_as(adapter, policy, source, distributed, where)
    return policy if dropout else without_dropout(policy)


def trained_as(
    adapter: AdapterConfig, model: Any, source: Path, distributed: Distributed, where: str, *, classifier: bool = False
) -> Any:
    """Return the model of ``source`` with what of it is trained, as `models.adapters.make_trainable` does."""
    knobs: dict[str, Any] = dataclasses.asdict(adapter)
    engine = engine_asked_for(distributed)
    return make_trainable(
        model, **knobs, where=where, new_token_ids=new_token_ids(source), classifier=classifier, engine=engine
    )


def wants_mask(model: Any) -> bool:
    """Return whether a model needs to know which tokens are padding: a loss that balances experts counts all others."""
    return bool(getattr(model.config.get_text_config(), "output_router_logits", False))


def balance_coefficient(model: Any) -> float:
    """Return what a model's own loss that balances its experts is multiplied by; 0 for a model without experts."""
    config = model.config.get_text_config()
    return float(getattr(config, "router_aux_loss_coef", 0.0)) if hasattr(config, "output_router_logits") else 0.0


@contextmanager
def loaded_whole(wanted: bool = True) -> Iterator[None]:
    """Load models whole inside, also under ZeRO-3, which would take each weight apart as it comes.

    Adapters cannot be put onto, or merged into, a backbone in parts; DeepSpeed takes the model apart later.
    """
    spreading = hf_deepspeed._hf_deepspeed_config_weak_ref
    if wanted:
        hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = spreading
