"""What the key of a stage was made of, kept by key, and how two of them differ, value by value.

<root>/cache/keys/<key>.json    {"version": 1, "parts": what the key is the hash of, "modules": {name: SHA-256}}
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from posttrain.stage.errors import UsageError
from posttrain.stage.files import canonical_json, may_write, read_state, write_json_atomic

VERSION = 1
"""Of the form of these files."""
NOTHING = "—"


@dataclasses.dataclass(frozen=True)
class Difference:
    """One part of a key that is not what it was."""

    part: str
    """``knob``, ``file``, ``input``, ``code``, ``seed`` or ``stage type``."""
    name: str
    then: str
    now: str

    def sentence(self) -> str:
        """Return it as a line for people."""
        if self.part in ("file", "code", "input"):
            what = {"file": "contents of the file", "code": "code of", "input": "input"}[self.part]
            change = "came" if self.then == NOTHING else "went" if self.now == NOTHING else "changed"
            return f"{what} {self.name} {change}" + (f": {self.then} → {self.now}" if self.part == "input" else "")
        return f"{self.part} {self.name}: {self.then} → {self.now}".replace("seed seed", "seed")


def write_parts(root: Path, key: str, parts: dict[str, Any], modules: dict[str, str]) -> None:
    """Keep what a key was made of, unless it is kept, or the store is one that we may only read."""
    path = _file(root, key)
    if not path.exists() and may_write(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(path, {"version": VERSION, "parts": parts, "modules": modules})


def read_parts(root: Path, key: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return what a key was made of, and the modules behind its code.

    Raises UsageError where that is not kept: the artifact was made by an older version, or the cache was removed.
    """
    path = _file(root, key)
    try:
        kept = read_state(path, VERSION, "the next run of the stage writes it")
        return kept["parts"], kept["modules"]
    except (FileNotFoundError, KeyError):
        raise UsageError(f"{path}: missing; what that key was made of is known from the next run on") from None


def _file(root: Path, key: str) -> Path:
    return root / "cache" / "keys" / f"{key}.json"


def differences(
    then: tuple[dict[str, Any], dict[str, str]], now: tuple[dict[str, Any], dict[str, str]]
) -> list[Difference]:
    """Return every part in which two keys differ: knobs, files, inputs, modules, the seed."""
    old, new = json.loads(canonical_json(then[0])), json.loads(canonical_json(now[0]))
    found = [Difference("stage type", "", old["run"], new["run"])] if old["run"] != new["run"] else []
    found += [_knob(*each) for each in _leaves_that_differ(old["config"], new["config"])]
    found += [
        Difference("input", name, _digest(a), _digest(b))
        for name, a, b in _leaves_that_differ(old["parents"], new["parents"])
    ]
    if old["seed"] != new["seed"]:
        found.append(Difference("seed", "seed", str(old["seed"]), str(new["seed"])))
    if old["code"] != new["code"]:
        found += [Difference("code", name, _digest(a), _digest(b)) for name, a, b in _entries(then[1], now[1])]
    return found


def _knob(name: str, old: Any, new: Any) -> Difference:
    if _is_digest(old) and _is_digest(new):
        return Difference("file", name, _digest(old), _digest(new))
    return Difference("knob", name, _written(old), _written(new))


def _leaves_that_differ(old: Any, new: Any, where: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [leaf for key, a, b in _entries(old, new) for leaf in _leaves_that_differ(a, b, f"{where}.{key}")]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = enumerate(zip(old, new, strict=True))
        return [leaf for place, (a, b) in pairs for leaf in _leaves_that_differ(a, b, f"{where}.{place}")]
    return [] if old == new else [(where.lstrip("."), old, new)]


def _entries(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the keys whose values differ, with None where a side has none."""
    return [(key, old.get(key), new.get(key)) for key in dict.fromkeys([*old, *new]) if old.get(key) != new.get(key)]


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) >= 64 and all(sign in "0123456789abcdef" for sign in value[:64])


def _digest(value: Any) -> str:
    return NOTHING if value is None else str(value)[:12]


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
