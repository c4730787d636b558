"""Score answers with a reward model or several, each under its own chat template and tokenizer."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from posttrain.data.chat.pieces import encode_texts
from posttrain.data.chat.rendering import render
from posttrain.data.chat.templates import template_digest
from posttrain.data.chat.tokenizer import control_pattern, load_tokenizer, tokenizer_digest
from posttrain.models.adapters import merged
from posttrain.models.batching import by_tokens
from posttrain.models.declared import context_length
from posttrain.models.load import load_reward_model, reward_moments
from posttrain.models.reward_scores import score_sequences
from posttrain.sample.choose.ensemble import combined, disagreement
from posttrain.sample.config.ensemble import EnsembleConfig
from posttrain.stage.errors import UsageError
from posttrain.stage.spec import Distributed
from posttrain.train.nets.in_parts import in_parts
from posttrain.train.rewards.weighted import Answer, Disputed


class RewardModelScore:
    """Callable that returns the reward of each answer; a frozen copy of the model on the device."""

    def __init__(
        self,
        directory: Path,
        policy_tokenizer: PreTrainedTokenizerBase,
        device: torch.device,
        scoring_tokens: int,
        normalize: bool,
        dtype: str = "float32",
        where: str = "inputs.reward",
        distributed: Distributed | None = None,
    ) -> None:
        """``distributed`` says whether its weights are in parts between uses; ``where`` is its input, for messages."""
        self.tokenizer = reward_tokenizer(directory, where)
        self.where = where
        model = load_reward_model(directory, dtype)
        self.model = merged(model).to(device).eval().requires_grad_(False)
        self.parts = in_parts(self.model, distributed) if distributed is not None else None
        self.scoring_tokens = scoring_tokens
        self.mean, self.std = reward_moments(model) if normalize else (0.0, 1.0)
        self.name = directory.name
        self.context = context_length(model.config)
        self.same_tokens = all(
            digest(self.tokenizer) == digest(policy_tokenizer) for digest in (template_digest, tokenizer_digest)
        )

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        """Return the score at the last token of each answer, with the model's mean and deviation taken out.

        The model reads the whole turn: the policy's tokens where it would make the same, or else the answer with the
        reasoning where its own template puts that, which some leave out. Unfinished reasoning is an empty answer then.
        Raises UsageError when answers with their prompts do not fit the model's context.
        """
        sequences = self._sequences(answers)
        lengths = [len(ids) for ids in sequences]
        self._require_room(lengths)
        batches = by_tokens(lengths, self.scoring_tokens)
        with self.parts.whole() if self.parts is not None else contextlib.nullcontext():
            scores = score_sequences(self.model, sequences, self.tokenizer.pad_token_id, batches)
        return [(score - self.mean) / self.std for score in scores]

    def _require_room(self, lengths: list[int]) -> None:
        if self.context is not None and (long := [length for length in lengths if length > self.context]):
            raise UsageError(
                f"{self.where}: {len(long)} of {len(lengths)} answers with their prompts are up to {max(long)} tokens "
                f"long for {self.name}, whose context is {self.context}; lower max_new_tokens, or tokenize "
                "prompts with a lower max_length"
            )

    def _sequences(self, answers: Sequence[Answer]) -> list[list[int]]:
        """Return the tokens that the model reads: the policy's where it would make the same, else its own."""
        if self.same_tokens:
            return [[*answer.prompt_ids, *answer.response_ids] for answer in answers]
        control = control_pattern(self.tokenizer)
        texts = []
        for answer in answers:
            # Or a policy could learn to spell this model's end of turn.
            content, reasoning = (control.sub(" ", text) for text in (answer.text, answer.reasoning))
            turn = {"role": "assistant", "content": content}
            if reasoning:
                turn["reasoning_content"] = reasoning
            texts.append(render(self.tokenizer, answer.conversation.followed_by(turn))[0])
        encoded = encode_texts(self.tokenizer, texts)
        end = self.tokenizer.eos_token_id
        return [_up_to_end(ids, end, answer.ended) for ids, answer in zip(encoded, answers, strict=True)]


class EnsembleScore:
    """Callable that returns what several reward models say together of each answer, and how far they disagree."""

    def __init__(self, models: Sequence[RewardModelScore], config: EnsembleConfig) -> None:
        self.models = models
        self.config = config

    def __call__(self, answers: Sequence[Answer]) -> Disputed:
        """Return the combined score of each answer."""
        scores_MN = [model(answers) for model in self.models]
        together_N = combined(scores_MN, self.config.combine, self.config.penalty)
        return Disputed(together_N.tolist(), disagreement(scores_MN).tolist())


def reward_tokenizer(directory: Path, where: str = "inputs.reward") -> PreTrainedTokenizerBase:
    """Return a reward model's tokenizer; raise UsageError where it or its chat template cannot be used."""
    try:
        return load_tokenizer(directory)
    except UsageError as error:
        raise UsageError(f"{where} ({directory.name}): {error}") from None


def _up_to_end(ids: list[int], end: int, ended: bool) -> list[int]:
    """Return tokens up to the end of the last turn, where reward models read; a response that did not end has none."""
    behind = len(ids) - ids[::-1].index(end)
    return ids[:behind] if ended else ids[: behind - 1]
