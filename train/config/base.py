"""Knobs of the base model."""

from __future__ import annotations

import datetime
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from posttrain.stage.schema import external, hub_revision, schema
from posttrain.train.config.common import Dtype

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@schema
class ArchitectureConfig:
    """Shape of a Llama trained from scratch."""

    hidden_size: int = Field(default=128, ge=8)
    """Features of a token's state."""
    num_layers: int = Field(default=6, ge=1)
    """Decoder layers."""
    num_heads: int = Field(default=4, ge=1)
    """Attention heads; they divide `hidden_size` among them."""
    num_kv_heads: int = Field(default=4, ge=1)
    """Heads of keys and values, each shared by as many attention heads."""
    intermediate_size: int = Field(default=352, ge=8)
    """Features inside the MLP."""
    max_position_embeddings: int = Field(default=512, ge=16)
    """Tokens of the context."""
    vocab_size: int = Field(default=768, ge=300)
    """Most tokens of the tokenizer that is trained with it."""
    rope_theta: float = Field(default=10000.0, gt=0)
    """Base of the rotary position embedding's wavelengths."""

    @model_validator(mode="after")
    def _heads_divide(self) -> ArchitectureConfig:
        if self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads={self.num_heads} does not divide hidden_size={self.hidden_size}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}")
        return self


@schema
class BaseConfig:
    """The base model: imported from a folder or hub name, or made from scratch with a tokenizer of its own."""

    path: str | None = external()
    """Local Hugging Face folder; a name like ``HuggingFaceTB/SmolLM2-135M`` that no folder here has is a `hub_name`."""
    hub_name: str | None = None
    """Model on the Hugging Face Hub, such as ``HuggingFaceTB/SmolLM2-135M``."""
    revision: str | None = hub_revision("hub_name", kind="model")
    """Commit, tag or branch of `hub_name`; None takes the newest. The commit is kept."""
    architecture: ArchitectureConfig | None = None
    """Give this instead of a path to start from random weights."""
    chat_template: Literal["chatml", "verbatim"] | None = None
    """One of ours; None keeps the model's own, or takes chatml where it has none.

    ``verbatim`` puts contents one behind the other, for models that continue running text; EOS ends a response.
    """
    chat_template_file: str | None = external()
    """A .jinja file with a template of your own."""
    chat_template_name: str | None = None
    """Which of several templates that the model brings; None takes its ``default``. One for tools goes along."""
    template_arguments: dict[str, Any] = Field(default_factory=dict)
    """Variables of the chat template, such as ``{enable_thinking: false}``, for every conversation that gives none."""
    date: str | None = None
    """Day, as 2026-07-26, that a template gets which writes today's date; None takes the day of the import."""
    merge_system: bool = False
    """Put a system message in front of the first user's, for templates that have no place for one."""
    pad_token: str | None = None
    """Padding where the tokenizer has none, or pads with EOS.

    A token that its vocabulary reserves for padding goes before one that would have to be added.
    """
    eos_token: str | None = None
    """End of turn; None keeps the tokenizer's, or the template's where we supply it."""
    trust_remote_code: bool = False
    """Run, and copy into the artifact, Python code that comes with the model."""
    dtype: Dtype | None = None
    """Precision of the stored weights; None keeps the checkpoint's, float32 from scratch."""

    @model_validator(mode="after")
    def _path_or_hub_name(self) -> BaseConfig:
        if self.path is not None and self.hub_name is None and _is_on_the_hub(self.path):
            self.path, self.hub_name = None, self.path
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> BaseConfig:
        given = [name for name in ("path", "hub_name", "architecture") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"give exactly one of path, hub_name and architecture (given: {', '.join(given) or 'none'})"
            )
        if self.chat_template is not None and self.chat_template_file is not None:
            raise ValueError("give chat_template or chat_template_file, not both")
        if self.date is not None:
            try:
                datetime.date.fromisoformat(self.date)
            except ValueError:
                raise ValueError(f"date={self.date}: not a day; write it as 2026-07-26") from None
        for name in self.template_arguments:
            if not name.isidentifier():
                raise ValueError(f"template_arguments: {name!r} is no name of a variable; use letters, digits and _")
        return self


def _is_on_the_hub(path: str) -> bool:
    """Return whether a path is a name of the Hub: a folder beside it, such as ``models/``, says that it is misspelt."""
    return _HUB_NAME.fullmatch(path) is not None and not Path(path).exists() and not Path(path).parent.exists()
