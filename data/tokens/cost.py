"""What a text costs in tokens: how many a tokenizer makes of the same text in one language and another.

On parallel texts the quotient of the counts is the premium (Petrov et al. 2023, "Language model tokenizers introduce
unfairness between languages"): what the same content costs, takes, and uses up of a context, beside the reference.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from posttrain.stage.errors import UsageError

_ENDS = re.compile(r"(?<=[.!?։።។၊။।॥؟۔])\s+|(?<=[。！？])|(?<=[။।])|\n+")
"""Where sentences end; in Thai and Lao, which mark no ends, only lines do."""


@dataclass(frozen=True)
class Cost:
    """What one tokenizer makes of the texts of one language."""

    tokenizer: str
    language: str
    characters: int
    bytes: int
    sentences: int
    tokens: int
    per_character: float
    per_byte: float
    per_sentence: float
    premium: float | None
    """Tokens over those of the reference language; None where that is not there."""
    p50: float
    p95: float
    longest: int
    """Tokens of a sentence: median, 95th percentile, most."""
    truncated: float | None
    """Share of sentences longer than a limit; None without one."""

    def as_dict(self) -> dict[str, Any]:
        """Return the figures as plain values."""
        return asdict(self)


def read_texts(path: Path) -> dict[str, str]:
    """Return text by language: of a folder or zip of ``eng.txt`` files, or of JSON lines with language and text.

    Raises UsageError for anything else, with the place.
    """
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".txt")]
            texts = {Path(name).stem: _decoded(archive.read(name), f"{path}/{name}") for name in names}
    elif path.is_dir():
        texts = {file.stem: _decoded(file.read_bytes(), str(file)) for file in sorted(path.glob("*.txt"))}
    elif path.suffix == ".jsonl" and path.is_file():
        texts = _of_rows(path)
    else:
        raise UsageError(f"{path}: give a folder or .zip of LANGUAGE.txt files, or .jsonl rows with language and text")
    if not texts:
        raise UsageError(f"{path}: no LANGUAGE.txt in it; name the files by their languages")
    return texts


def _decoded(content: bytes, place: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{place}: byte {error.start} is not UTF-8; convert the file") from None


def _of_rows(path: Path) -> dict[str, str]:
    texts: dict[str, list[str]] = {}
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                texts.setdefault(row["language"], []).append(row["text"])
            except (ValueError, KeyError, TypeError):
                raise UsageError(f"{path}:{number}: not an object with language and text; mend the line") from None
    return {language: "\n".join(own) for language, own in texts.items()}


def sentences(text: str) -> list[str]:
    """Return the sentences of a text, in any script that marks their ends, and otherwise its lines."""
    return [part.strip() for part in _ENDS.split(text) if part and part.strip()]


def load_tokenizer_file(path: Path) -> Any:
    """Return the tokenizer of a ``tokenizer.json``, or of a folder that has one. Raises UsageError without one."""
    from tokenizers import Tokenizer

    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"{path}: no tokenizer.json there; give it, or a folder that has it")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more exact
        raise UsageError(f"{file}: no tokenizer that can be read ({error}); export it again") from None


def costs(
    tokenizer: Any, name: str, texts: Mapping[str, str], reference: str, max_length: int | None
) -> Iterator[Cost]:
    """Yield the cost of each language, in the order of ``texts``."""
    counted = {language: _counts(tokenizer, sentences(text)) for language, text in texts.items()}
    base = sum(counted.get(reference, []))
    for language, text in texts.items():
        counts = np.array(counted[language] or [0])
        tokens, characters, size = int(counts.sum()), len(text), len(text.encode("utf-8"))
        yield Cost(
            name,
            language,
            characters,
            size,
            len(counted[language]),
            tokens,
            tokens / max(characters, 1),
            tokens / max(size, 1),
            tokens / max(len(counted[language]), 1),
            tokens / base if base else None,
            float(np.percentile(counts, 50)),
            float(np.percentile(counts, 95)),
            int(counts.max()),
            None if max_length is None else float((counts > max_length).mean()),
        )


def _counts(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    return [len(encoding.ids) for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
