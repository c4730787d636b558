"""Columns that are named otherwise than an adapter wants them, and which renaming would mend it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

SYNONYMS: dict[str, tuple[str, ...]] = {
    "prompt": ("question", "instruction", "query", "input", "prompts", "user"),
    "completion": ("response", "answer", "output", "reply", "target", "assistant"),
    "question": ("query", "problem", "prompt"),
    "answer": ("response", "solution", "reply", "output"),
    "instruction": ("instructions", "prompt", "question"),
    "output": ("response", "answer", "completion"),
    "messages": ("conversation", "dialogue", "dialog", "chat", "turns"),
    "conversations": ("conversation", "dialogues"),
    "text": ("content", "document"),
    "chosen": ("preferred", "accepted", "winner", "better", "chosen_response"),
    "rejected": ("dispreferred", "loser", "worse", "rejected_response"),
    "responses": ("completions", "answers", "candidates", "outputs"),
    "ranks": ("rank", "ranking", "rankings"),
    "label": ("labels", "desirable", "is_desirable"),
    "reference": ("answer", "target", "label", "solution", "ground_truth", "expected"),
}
"""Other names that published files give to the columns of adapters, the commonest first."""
_LIKENESS = 0.8
"""From which ratio on two names are taken for one that was mistyped."""


def renames(wanted: Iterable[str], columns: Iterable[str], keep: Iterable[str]) -> Mapping[str, str] | None:
    """Return which column to rename to each wanted one that is absent, old name to new; None where none could be one.

    Columns of ``keep`` mean something else already.
    """
    wanted = set(wanted)
    columns = list(columns)
    free = {_folded(name): name for name in columns if name not in wanted and name not in set(keep)}
    found: dict[str, str] = {}
    for name in sorted(wanted - set(columns)):
        alike = [name, *SYNONYMS.get(name, ()), *difflib.get_close_matches(name, free, cutoff=_LIKENESS)]
        match = next((other for other in alike if other in free), None)
        if match is None:
            return None
        found[free.pop(match)] = name
    return found


def cost(found: Mapping[str, str]) -> tuple[int, int]:
    """Return by what to prefer one set of renamings to another: few ones, and of spelling rather than of sense."""
    return len(found), sum(_folded(old) != new for old, new in found.items())


def phrase(found: Mapping[str, str]) -> str:
    """Return renamings as a fix: ``rename 'a' to 'b' and 'c' to 'd'``."""
    return "rename " + " and ".join(f"{old!r} to {new!r}" for old, new in found.items())


def _folded(name: str) -> str:
    return "_".join(name.replace("-", " ").casefold().split())
