"""A judge that is a checkpoint of ours: the same questions as to one behind a server, to our own sampler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from posttrain.data.chat.pieces import encode_prompts
from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.data.messages import Conversation
from posttrain.models.declared import context_length
from posttrain.models.load import load_policy
from posttrain.models.processes import device
from posttrain.sample.backends.cached import CachedSampler
from posttrain.sample.backends.judge import Replies, rubric_of
from posttrain.sample.backends.response_cache import ResponseCache
from posttrain.sample.config.judge import JudgeModelConfig
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import SamplingParams
from posttrain.stage.artifact import read_manifest
from posttrain.stage.errors import UsageError


class LocalJudge:
    """Asks a model artifact, each question only once; the likeliest reply counts."""

    def __init__(self, directory: Path, config: JudgeModelConfig, work: Path, where: str) -> None:
        """``work`` is the folder of a cache that the configuration does not name; ``where`` the path of its knobs."""
        self._directory, self._config, self._where = directory, config, where
        self._cache = Path(config.cache) if config.cache is not None else work / "judge.sqlite"

    def rubric(self, language: str) -> str:
        """Return what makes a response in a language good."""
        return rubric_of(self._config.rubrics, language)

    def ask(self, questions: Sequence[str]) -> Replies:
        """Return the replies to questions; what the model thought before one is no part of it.

        Raises UsageError where a question leaves no room for a reply, before any is asked.
        """
        unique = list(dict.fromkeys(questions))
        tokenizer = load_tokenizer(self._directory)
        model = load_policy(self._directory).eval().to(device())
        prompts = encode_prompts(tokenizer, [Conversation([{"role": "user", "content": one}]) for one in unique])
        self._require_room(max(map(len, prompts)), context_length(model.config))
        sampler = Sampler(model, tokenizer, max_batch_size=self._config.max_concurrent)
        params = SamplingParams(max_tokens=self._config.max_tokens, temperature=0.0)
        with ResponseCache(self._cache, self._config.cache_bytes) as cache:
            digest = read_manifest(self._directory).digest
            samples = CachedSampler(sampler, cache, digest).generate(prompts, params)
        replies = {question: one.text for question, (one,) in zip(unique, samples, strict=True)}
        return Replies([replies[question] for question in questions], len(unique))

    def _require_room(self, longest: int, context: int | None) -> None:
        if context is not None and longest + self._config.max_tokens > context:
            raise UsageError(
                f"{self._where}.max_tokens={self._config.max_tokens}: with a question of {longest} tokens that is more "
                f"than the context of {self._directory.name}, {context}; lower it, or ask another judge"
            )
