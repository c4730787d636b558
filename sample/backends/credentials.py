"""What a server wants to be told before it answers: from the environment, so that no key, log or manifest holds it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from posttrain.stage.errors import UsageError

KEY = "POSTTRAIN_API_KEY"
"""Variable whose value goes with every request as a bearer token."""
HEADERS = "POSTTRAIN_API_HEADERS"
"""Variable with further headers, a JSON object of texts."""


def credentials(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the headers that the environment says go with every request.

    Raises UsageError, which does not show the value, where it is not what it must be.
    """
    given = os.environ if environment is None else environment
    headers: dict[str, str] = {}
    if text := given.get(HEADERS):
        try:
            read = json.loads(text)
        except ValueError:
            read = None
        if not isinstance(read, dict) or not all(isinstance(value, str) for value in read.values()):
            raise UsageError(f'{HEADERS}: not a JSON object of texts; give {{"NAME": "VALUE"}}')
        headers |= read
    if key := given.get(KEY):
        headers["Authorization"] = f"Bearer {key}"
    return headers


def require_no_credentials(url: str) -> None:
    """Raise UsageError, which does not show it, for a URL with a user or password: messages and manifests show URLs."""
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        raise UsageError(f"{shown}: a URL with a user or password; give the URL alone, and the key as {KEY}")


def without_secrets(text: str, headers: Mapping[str, str]) -> str:
    """Return what a server said with the values of headers, and the words of them, blotted out."""
    words = {word for value in headers.values() for word in (value, *value.split()) if len(word) >= 6}
    for word in sorted(words - {"Bearer"}, key=len, reverse=True):
        text = text.replace(word, "***")
    return text
