"""Chat templates, special tokens, and the boundary between prompt and response, owned in one place.

A model artifact carries its tokenizer with a chat template, a padding token that is not EOS, and as EOS the token that
ends an assistant's turn: every response ends with it, and generation stops at it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from jinja2.exceptions import TemplateError
from tokenizers import AddedToken
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from posttrain.stage.errors import UsageError
from posttrain.stage.files import canonical_json, sha256_text

Messages = Sequence[dict[str, str]]
"""A conversation: ``{"role": …, "content": …}`` by turn."""
Span = tuple[int, int]
"""Half-open range of characters."""

Pieces = TypeVar("Pieces", str, list[int])

CHATML_START, CHATML_END, PAD_TOKEN = "<|im_start|>", "<|im_end|>", "<|pad|>"
_GENERATION_MARKER = re.compile(r"{%-?\s*generation\s*-?%}")
_PADDING = re.compile(r"\W*(finetune_)?(right_)?pad(_id|_token|ding)?\W*", re.IGNORECASE)
_PROBE = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "World"}]


TEMPLATES = {"chatml": "chat/chatml.jinja", "verbatim": "chat/verbatim.jinja"}
"""Our templates: ChatML, and running text for models that continue what they read; both mark the assistant's part."""


def named_template(name: str, begins_with_bos: bool) -> str:
    """Return a template of ours; some models want BOS before everything."""
    template = resources.files("posttrain.conf").joinpath(TEMPLATES[name]).read_text(encoding="utf-8")
    return "{{- bos_token -}}\n" + template if begins_with_bos else template


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer puts its BOS token before a plain text."""
    return tokenizer.bos_token_id is not None and tokenizer("a").input_ids[:1] == [tokenizer.bos_token_id]


def prepare_tokenizer(
    tokenizer: PreTrainedTokenizerBase,
    template: str | None = None,
    pad_token: str | None = None,
    eos_token: str | None = None,
) -> None:
    """Give a tokenizer, in place, what training needs: a chat template, a padding token and an end of turn.

    ``template`` is Jinja text, or the name of one of ours; None keeps the tokenizer's own, or takes ``chatml`` where
    it has none. ChatML brings its markers and its end of turn along; ``verbatim`` ends a response with the model's own
    EOS. The tokenizer's own padding token stays; where it has none but EOS, ``pad_token`` becomes it, or a token that
    the vocabulary reserves for padding. Tokens that the vocabulary lacks are added to it.
    """
    if template is None:
        template = tokenizer.get_chat_template() if tokenizer.chat_template else "chatml"
    if template == "chatml":
        eos_token = eos_token or CHATML_END
        markers = [AddedToken(token, special=True, normalized=False) for token in (CHATML_START, CHATML_END)]
        tokenizer.add_tokens(markers, special_tokens=True)
    tokenizer.chat_template = named_template(template, adds_bos(tokenizer)) if template in TEMPLATES else template
    if eos_token is not None:
        tokenizer.add_special_tokens({"eos_token": eos_token})
    if pad_token is not None and tokenizer.pad_token in (None, tokenizer.eos_token):
        known = pad_token in tokenizer.get_vocab()
        tokenizer.add_special_tokens({"pad_token": pad_token if known else reserved_padding(tokenizer) or pad_token})


def reserved_padding(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return a special token whose name says that it is for padding, such as ``<|finetune_right_pad_id|>``, if any."""
    special = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    return next((text for text in special if _PADDING.fullmatch(text) and text != tokenizer.eos_token), None)


def load_tokenizer(directory: Path, *, generation_markers: bool = False) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a model artifact, checked as `check_tokenizer` does."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UsageError(f"{directory}: no tokenizer that can be read ({str(error).splitlines()[0]})") from None
    check_tokenizer(tokenizer, generation_markers=generation_markers)
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, *, generation_markers: bool = False) -> None:
    """Check that a response can be told from its prompt and from padding, and that its end is learned.

    ``generation_markers`` demands a template that marks what the assistant says, end of turn included. Raises
    UsageError that names the fix.
    """
    if not tokenizer.is_fast:
        raise UsageError(f"{type(tokenizer).__name__} has no tokenizer.json; convert it to a fast tokenizer")
    if not tokenizer.chat_template:
        raise UsageError("the tokenizer has no chat template; set train.base.chat_template=chatml")
    if tokenizer.eos_token_id is None:
        raise UsageError("the tokenizer has no EOS token; set train.base.eos_token to what ends a turn")
    if tokenizer.pad_token_id is None:
        raise UsageError(f"the tokenizer has no padding token; set train.base.pad_token='{PAD_TOKEN}'")
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise UsageError(
            f"padding and EOS are both {tokenizer.eos_token!r}, so the end of a response would be masked like padding; "
            f"set train.base.pad_token='{PAD_TOKEN}'"
        )
    _check_end_of_turn(tokenizer)
    if generation_markers:
        _check_generation_markers(tokenizer)


def _check_end_of_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    text, _ = render(tokenizer, _PROBE)
    start = response_start(tokenizer, render_prompt(tokenizer, _PROBE[:-1]), text)
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
    if not has_generation_markers(tokenizer):
        raise UsageError(
            f"{template_name(tokenizer)} has no {{% generation %}} markers, which loss_on=assistant needs; set "
            "train.base.chat_template=chatml, mark the turns in a template of your own, or set loss_on=completion"
        )
    text, spans = render(tokenizer, _PROBE)
    if not any(tokenizer.eos_token in text[start:end] for start, end in spans):
        raise UsageError(
            f"{template_name(tokenizer)} leaves {tokenizer.eos_token!r} outside its {{% generation %}} markers, so the "
            "end of turn would not be trained; move it before {% endgeneration %}"
        )


def has_generation_markers(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the chat template marks what the assistant says."""
    return _GENERATION_MARKER.search(tokenizer.get_chat_template()) is not None


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the special tokens of a tokenizer, longest first: texts that hold one could forge a turn."""
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    return sorted(special.union(tokenizer.all_special_tokens), key=lambda token: (-len(token), token))


def template_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the SHA-256 of the chat template."""
    return sha256_text(tokenizer.get_chat_template())


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


def template_name(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return how messages call the chat template."""
    return f"the chat template {template_digest(tokenizer)[:12]}"


def render(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, *, add_generation_prompt: bool = False
) -> tuple[str, list[Span]]:
    """Return a conversation as text, with the spans that the template marks as the assistant's.

    Raises UsageError when the template refuses the conversation.
    """
    marked = has_generation_markers(tokenizer)
    try:
        texts, spans = render_jinja_template(
            conversations=[messages],
            chat_template=tokenizer.get_chat_template(),
            return_assistant_tokens_mask=marked,
            add_generation_prompt=add_generation_prompt,
            **tokenizer.special_tokens_map,
        )
    except TemplateError as error:
        raise UsageError(f"{template_name(tokenizer)} refuses the conversation: {error}") from None
    return texts[0], spans[0] if marked else []


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> str:
    """Return a conversation as the text that the model continues with its response."""
    return render(tokenizer, messages, add_generation_prompt=True)[0]


def response_start(tokenizer: PreTrainedTokenizerBase, prompt: str, text: str) -> int:
    """Return the character at which the response begins in a conversation rendered as ``text``.

    ``prompt`` is what `render_prompt` gives without the response. Raises UsageError when the template renders the same
    turns differently once the response stands behind them.
    """
    if not text.startswith(prompt):
        raise UsageError(
            f"{template_name(tokenizer)} does not begin a finished conversation with its generation prompt "
            f"({prompt[-40:]!r}), so the response cannot be told from its prompt; set train.base.chat_template=chatml"
        )
    return len(prompt)


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of rendered texts, nothing added; equal texts are encoded once."""
    unique = list(dict.fromkeys(texts))
    if not unique:
        return []
    ids = dict(zip(unique, tokenizer(unique, add_special_tokens=False, verbose=False).input_ids, strict=True))
    return [ids[text] for text in texts]


def encode_prompts(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Messages]) -> list[list[int]]:
    """Return the token ids of conversations under the tokenizer's chat template, up to where the answer begins."""
    return encode_texts(tokenizer, [render_prompt(tokenizer, prompt) for prompt in prompts])


def response_text(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], response: Sequence[int]) -> str:
    """Return the text of sampled tokens as it stands behind that of their prompt, without special tokens.

    Decoded by themselves they may lose a space at their beginning, which a tokenizer of SentencePiece's kind takes for
    the one that it puts before every text.
    """
    before, whole = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, [*prompt, *response]))
    text: str = whole[len(before) :]
    return text


def encode_pieces(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], cuts: Sequence[Sequence[int]]
) -> list[list[list[int]]]:
    """Return each text's token ids in pieces that meet at the given characters, in ascending order.

    The pieces are those of the whole text where its tokens break at the cuts. Where a token would span a cut, as when
    a tokenizer joins the template's newline with one that a response begins with, each piece is encoded by itself:
    so does generation, which continues a prompt that ends at the cut.
    """
    heads = [text[:cut] for text, text_cuts in zip(texts, cuts, strict=True) for cut in text_cuts]
    encoded = encode_texts(tokenizer, [*texts, *heads])
    wholes, prefixes = encoded[: len(texts)], iter(encoded[len(texts) :])
    pieces = []
    for text, text_cuts, whole in zip(texts, cuts, wholes, strict=True):
        text_heads = [next(prefixes) for _ in text_cuts]
        if all(whole[: len(head)] == head for head in text_heads):
            pieces.append(_split(whole, [len(head) for head in text_heads]))
        else:
            pieces.append(encode_texts(tokenizer, _split(text, text_cuts)))
    return pieces


def _split(sequence: Pieces, cuts: Sequence[int]) -> list[Pieces]:
    bounds = [0, *cuts, len(sequence)]
    return [sequence[start:end] for start, end in itertools.pairwise(bounds)]
