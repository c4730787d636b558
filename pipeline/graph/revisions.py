"""Which commits names on the Hugging Face Hub stand for: a branch moves, and what is made from it must not silently.

<root>/cache/revisions.json    the commit that each name and revision was last at, for when the Hub does not answer
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from posttrain.stage.errors import UsageError
from posttrain.stage.files import read_state, write_json_atomic
from posttrain.stage.schema import with_commits

VERSION = 1
ANSWER_SECONDS = 10.0
"""How long the Hub may take to answer."""
_COMMIT = re.compile("[0-9a-f]{40}")


class Revisions:
    """Commits of names on the Hub, asked for once and remembered. ``frozen`` asks only for what is not remembered."""

    def __init__(self, cache: Path, frozen: bool) -> None:
        self._cache = cache
        self._frozen = frozen
        self._remembered = _read(cache)
        self._asked: dict[str, str | None] = {}
        self._changed = False

    def pinned(self, config: Any) -> Any:
        """Return a stage's configuration with every revision on the Hub as a commit.

        One that can be found nowhere stays as it is: the stage says why it cannot be loaded.
        """
        return with_commits(config, self._commit)

    def save(self) -> None:
        """Remember what the Hub said."""
        if self._changed:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            write_json_atomic(self._cache, {"version": VERSION, "commits": self._remembered})
            self._changed = False

    def _commit(self, kind: str, name: str, revision: str | None) -> str | None:
        if revision is not None and _COMMIT.fullmatch(revision):
            return revision
        what = f"{kind} {name} {revision or 'main'}"
        if what not in self._asked:
            self._asked[what] = self._look_up(what, kind, name, revision or "main")
        return self._asked[what] or revision

    def _look_up(self, what: str, kind: str, name: str, revision: str) -> str | None:
        remembered = self._remembered.get(what)
        if self._frozen and remembered:
            return remembered
        said = _ask_hub(kind, name, revision)
        if _COMMIT.fullmatch(said):
            self._changed = self._changed or said != remembered
            self._remembered[what] = said
            return said
        found = remembered or _cached(kind, name, revision)
        if found and said:
            print(f"warning: {kind} {name} is taken at commit {found[:12]}, known before: {said}", file=sys.stderr)
        return found


def _ask_hub(kind: str, name: str, revision: str) -> str:
    """Return the commit, or why the Hub does not say it; nothing where the user wants no network."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        return str(HfApi().repo_info(name, repo_type=kind, revision=revision, timeout=ANSWER_SECONDS).sha)
    except OfflineModeIsEnabled:
        return ""
    except Exception as error:  # the network, the name or the rights: the library has dozens of types
        return f"the Hub does not say the present one ({type(error).__name__})"


def _cached(kind: str, name: str, revision: str) -> str | None:
    """Return the commit that the local cache of the Hub has under a name, which is what would be loaded offline."""
    from huggingface_hub.constants import HF_HUB_CACHE

    path = Path(HF_HUB_CACHE) / f"{kind}s--{name.replace('/', '--')}" / "refs" / revision
    return path.read_text(encoding="utf-8").strip() if path.is_file() else None


def _read(cache: Path) -> dict[str, str]:
    try:
        known = read_state(cache, VERSION, "").get("commits")
    except (OSError, UsageError):
        return {}
    return known if isinstance(known, dict) else {}
