"""Records: what is said of an artifact after it was committed, beside it, since an artifact is never edited.

    <root>/records/<artifact>/<what>-<16 digits>.json    the artifact's name and digest, what is said, when, and a hash

The hash is over everything else that the record says, so that `posttrain verify` notices an edit.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from posttrain.stage.artifact import read_manifest
from posttrain.stage.errors import UsageError
from posttrain.stage.files import canonical_json, sha256_text, write_json_atomic

RECORDS = "records"
_HASH = "sha256"


def write_record(artifact: Path, what: str, subject: str, said: dict[str, Any]) -> Path:
    """Leave a record beside an artifact and return its file.

    ``what`` is the kind of record, ``subject`` the key or digest that it is about besides the artifact.
    """
    path = artifact.parent.parent / RECORDS / artifact.name / f"{what}-{subject[:16]}.json"
    record = {
        "what": what,
        "artifact": artifact.name,
        "digest": read_manifest(artifact).digest,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        **said,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(path, {**record, _HASH: _hash_of(record)})
    return path


def read_record(path: Path) -> dict[str, Any]:
    """Return what a record says.

    Raises UsageError when it is not readable or not as it was written.
    """
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        recorded = record.pop(_HASH)
    except (ValueError, KeyError, AttributeError) as error:
        raise UsageError(f"{path}: not a readable record ({error}); delete it, and say again what it said") from None
    if recorded != _hash_of(record):
        raise UsageError(f"{path}: not as it was written; delete it, and say again what it said")
    return record


def find_records(root: Path, what: str, subject: str) -> list[Path]:
    """Return the records of a kind about a key or digest, whatever their artifact."""
    return sorted((root / RECORDS).glob(f"*/{what}-{subject[:16]}.json"))


def records_of(artifact: Path) -> list[Path]:
    """Return all records beside an artifact."""
    return sorted((artifact.parent.parent / RECORDS / artifact.name).glob("*.json"))


def _hash_of(record: dict[str, Any]) -> str:
    return sha256_text(canonical_json(record))
