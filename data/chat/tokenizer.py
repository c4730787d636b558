"""What a tokenizer needs to train and chat: a template, padding that is not EOS, and an end of turn.

A model artifact carries its tokenizer with a chat template, a padding token that is not EOS, and as EOS the token that
ends an assistant's turn: every response ends with it, and generation stops at it.
"""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from posttrain.data.chat.rendering import render, render_answered
from posttrain.data.chat.templates import (
    TEMPLATES,
    fixed_template,
    is_marked,
    named_template,
    template_digest,
    template_name,
    template_of,
)
from posttrain.data.messages import Conversation
from posttrain.stage.errors import UsageError
from posttrain.stage.files import canonical_json, sha256_text

TOOL_USE = "tool_use"
"""The name by which transformers takes a template where a conversation has tools."""
CHATML_START, CHATML_END, PAD_TOKEN = "<|im_start|>", "<|im_end|>", "<|pad|>"
_PADDING = re.compile(r"\W*(finetune_)?(right_)?pad(_id|_token|ding)?\W*", re.IGNORECASE)
_QUESTION = Conversation([{"role": "user", "content": "Hello"}])
_PROBE = _QUESTION.followed_by({"role": "assistant", "content": "World"})


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer puts its BOS token before a plain text."""
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    template: str | dict[str, str] | None = None,
    pad_token: str | None = None,
    eos_token: str | None = None,
    own_name: str | None = None,
) -> None:
    """Give a tokenizer, in place, what training needs: a chat template, a padding token and an end of turn.

    ``template`` is Jinja text, or the name of one of ours; None keeps the tokenizer's own, or takes ``chatml`` where
    it has none. ``own_name`` is which of several of its own it takes, beside the one for tools. ChatML brings its
    markers and its end of turn along; ``verbatim`` ends a response with the model's own EOS. The tokenizer's own
    padding token stays; where it has none but EOS, ``pad_token`` becomes it, or a token that the vocabulary reserves
    for padding. Tokens that the vocabulary lacks are added to it.
    """
    if template is None:
        template = _own_template(tokenizer, own_name) if tokenizer.chat_template else "chatml"
    if template == "chatml":
        eos_token = eos_token or CHATML_END
        markers = [AddedToken(token, special=True, normalized=False) for token in (CHATML_START, CHATML_END)]
        tokenizer.add_tokens(markers, special_tokens=True)
    ours = isinstance(template, str) and template in TEMPLATES
    tokenizer.chat_template = named_template(str(template), adds_bos(tokenizer)) if ours else template
    if eos_token is not None:
        tokenizer.add_special_tokens({"eos_token": eos_token})
    if pad_token is not None and tokenizer.pad_token in (None, tokenizer.eos_token):
        known = pad_token in tokenizer.get_vocab()
        tokenizer.add_special_tokens({"pad_token": pad_token if known else reserved_padding(tokenizer) or pad_token})


def _own_template(tokenizer: PreTrainedTokenizerBase, name: str | None) -> str | dict[str, str]:
    """Return the tokenizer's own template; of several the one of that name, and the one that is for tools."""
    own: str | dict[str, str] = tokenizer.chat_template
    if isinstance(own, str):
        if name is not None:
            raise UsageError(f"train.base.chat_template_name={name}: the tokenizer has one template, without a name")
        return own
    chosen = name or ("default" if "default" in own else None)
    if chosen is None or chosen not in own:
        raise UsageError(
            f"train.base.chat_template_name={name}: the tokenizer's templates are {', '.join(own)}; name one of them"
        )
    return {"default": own[chosen]} | {key: text for key, text in own.items() if key == TOOL_USE}


def fix_template(
    tokenizer: PreTrainedTokenizerBase, arguments: dict[str, Any], date: datetime.date, merge_system: bool
) -> None:
    """Write into a tokenizer's chat template, in place, what `fixed_template` says."""
    own = tokenizer.chat_template
    tokenizer.chat_template = (
        fixed_template(own, arguments, date, merge_system)
        if isinstance(own, str)
        else {name: fixed_template(text, arguments, date, merge_system) for name, text in own.items()}
    )


def reserved_padding(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a special token whose name says that it is for padding, such as ``<|finetune_right_pad_id|>``, if any."""
    special = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    return next((text for text in special if _PADDING.fullmatch(text) and text != tokenizer.eos_token), None)


def load_tokenizer(directory: Path, *, generation_markers: bool = False, pads: bool = True) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model's folder, checked as `check_tokenizer` does."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"{directory}: no tokenizer that can be read ({str(error).splitlines()[0]})") from None
    check_tokenizer(tokenizer, generation_markers=generation_markers, pads=pads)
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, *, generation_markers: bool = False, pads: bool = True) -> None:
    """Check that a response can be told from its prompt and from padding, and that its end is learned.

    With ``generation_markers``, a template that marks what the assistant says has to mark the end of turn too. Without
    ``pads``, as where a model is only sampled from, padding is not asked for. Raises UsageError that names the fix.
    """
    if not tokenizer.is_fast:
        raise UsageError(f"{type(tokenizer).__name__} has no tokenizer.json; convert it to a fast tokenizer")
    if not tokenizer.chat_template:
        raise UsageError("the tokenizer has no chat template; set train.base.chat_template=chatml")
    if tokenizer.eos_token_id is None:
        raise UsageError("the tokenizer has no EOS token; set train.base.eos_token to what ends a turn")
    if pads and tokenizer.pad_token_id is None:
        raise UsageError(f"the tokenizer has no padding token; set train.base.pad_token='{PAD_TOKEN}'")
    if pads and tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise UsageError(
            f"padding and EOS are both {tokenizer.eos_token!r}, so the end of a response would be masked like padding; "
            f"set train.base.pad_token='{PAD_TOKEN}'"
        )
    _check_end_of_turn(tokenizer)
    if generation_markers and is_marked(template_of(tokenizer).text):
        _check_generation_markers(tokenizer)


def _check_end_of_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    text, start = render_answered(tokenizer, _PROBE)
    after = text[start:].partition("World")[2]
    if tokenizer.eos_token in after:
        return
    ends = [token for token in control_tokens(tokenizer) if token in after]
    fix = f"set train.base.eos_token='{ends[0]}'" if ends else "set train.base.chat_template=chatml"
    raise UsageError(
        f"{template_name(tokenizer)} ends a response with {after!r}, not with EOS ({tokenizer.eos_token!r}), so "
        f"generation would not stop there; {fix}"
    )


def _check_generation_markers(tokenizer: PreTrainedTokenizerBase) -> None:
    text, spans = render(tokenizer, _PROBE)
    if not any(tokenizer.eos_token in text[start:end] for start, end in spans):
        raise UsageError(
            f"{template_name(tokenizer)} leaves {tokenizer.eos_token!r} outside its {{% generation %}} markers, so the "
            "end of turn would not be trained; move it before {% endgeneration %}"
        )


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the special tokens of a tokenizer, longest first: texts that hold one could forge a turn."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(special.union(tokenizer.all_special_tokens), key=lambda token: (-len(token), token))


def control_pattern(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Return the pattern of a special token."""
    return re.compile("|".join(map(re.escape, control_tokens(tokenizer))))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of vocabulary, rules and special tokens: the same digest, the same ids for any text."""
    rules: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    rules["padding"] = rules["truncation"] = None  # the settings of the last call, not part of the vocabulary
    return sha256_text(canonical_json([rules, tokenizer.special_tokens_map]))


def require_tokens(directory: Path, record_type: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that a tokens artifact holds the wanted records, made with the model's own tokenizer and chat template.

    Raises UsageError otherwise.
    """
    facts = json.loads((directory / "tokens.json").read_text(encoding="utf-8"))
    if facts["record_type"] != record_type:
        raise UsageError(
            f"{directory.name}: holds {facts['record_type']} tokens; this stage needs {record_type} tokens"
        )
    for what, made_with, models_own in (
        ("chat template", facts["template_sha256"], template_digest(tokenizer)),
        ("tokenizer", facts["tokenizer_sha256"], tokenizer_digest(tokenizer)),
    ):
        if made_with != models_own:
            raise UsageError(
                f"{directory.name}: made with {what} {made_with[:12]}, but the model's is {models_own[:12]}; tokenize "
                "with this model"
            )
