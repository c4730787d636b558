"""Knobs of a judge: a model that compares or grades responses, behind an OpenAI-compatible server."""

from __future__ import annotations

from pydantic import Field

from posttrain.stage.schema import schema, speed


@schema
class JudgeModelConfig:
    """A model that judges, and how it is asked."""

    model: str = Field(min_length=1)
    """Name by which the server knows it: of what is asked, all but this is about the way there."""
    url: str = speed("http://127.0.0.1:8000")
    """Root of a server that speaks OpenAI's ``/v1/chat/completions``, without ``/v1``."""
    api_key_variable: str | None = speed(None)
    """Name of the environment variable that holds the server's key."""
    rubrics: dict[str, str] = Field(default_factory=dict)
    """What makes a response good, by language; that of ``default`` holds for all others. Languages without one are
    judged by helpfulness, truth and clarity, in English."""
    max_tokens: int = Field(default=512, ge=1)
    """Most tokens of a reply."""
    max_concurrent: int = speed(16, ge=1)
    """Questions that are out at once."""
    max_calls: int | None = speed(None, ge=0)
    """Budget: where more calls than this would be made, none is. Null has no bound."""
    timeout_seconds: float = speed(120.0, gt=0)
    """How long a reply may take."""
    max_retries: int = speed(5, ge=0)
    """How often a question is sent again that finds the server busy or loses its connection."""
    cache: str | None = speed(None)
    """SQLite file of replies that stages share; null keeps them with the stage, for when it is started again."""
    cache_bytes: int = speed(1 << 30, ge=1 << 20)
    """Most bytes of that file."""
