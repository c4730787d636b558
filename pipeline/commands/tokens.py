"""`posttrain tokens`: what the same text costs in tokens, by language and tokenizer."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from posttrain.data.tokens.cost import Cost, costs, load_tokenizer_file, read_texts
from posttrain.stage.errors import EXIT_DONE, UsageError, did_you_mean


def print_tokens(
    texts: Path,
    tokenizers: Sequence[str],
    languages: Sequence[str],
    reference: str,
    max_length: int | None,
    out: Path | None,
) -> int:
    """Print a table, the most expensive language first; with ``out``, write it as CSV and as a plot there.

    A tokenizer is given as ``NAME=FOLDER`` or ``FOLDER``. Raises UsageError for languages that the texts lack.
    """
    found = read_texts(texts)
    wanted = list(dict.fromkeys([reference, *languages])) if languages else list(found)
    for language in wanted:
        if language not in found:
            raise UsageError(f"{texts}: no text in {language!r}{did_you_mean(language, found)}")
    chosen = {language: found[language] for language in wanted}
    rows: list[Cost] = []
    for given in tokenizers:
        name, equals, path = given.partition("=")
        loaded = load_tokenizer_file(Path(path if equals else given))
        rows += costs(loaded, name if equals else Path(given).name, chosen, reference, max_length)
    rows.sort(key=lambda row: (row.tokenizer, -(row.premium or 0), row.language))
    Console().print(_table(rows, reference, max_length))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "tokens.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].as_dict())
            writer.writeheader()
            writer.writerows(row.as_dict() for row in rows)
        _plot(rows, reference, out / "tokens.svg")
        print(f"{out / 'tokens.csv'}, {out / 'tokens.svg'}")
    return EXIT_DONE


def _table(rows: Sequence[Cost], reference: str, max_length: int | None) -> Table:
    table = Table(box=None, pad_edge=False)
    heads = ["tokenizer", "language", "tokens", "per character", "per byte", "per sentence", f"× {reference}"]
    heads += ["p50", "p95", "longest", *([f"over {max_length}"] if max_length is not None else [])]
    for place, head in enumerate(heads):
        table.add_column(head, justify="left" if place < 2 else "right")
    for row in rows:
        premium = "–" if row.premium is None else f"{row.premium:.2f}"
        cells = [row.tokenizer, row.language, f"{row.tokens:,}", f"{row.per_character:.2f}", f"{row.per_byte:.2f}"]
        cells += [f"{row.per_sentence:.1f}", premium, f"{row.p50:.0f}", f"{row.p95:.0f}", f"{row.longest:,}"]
        table.add_row(*cells, *([] if row.truncated is None else [f"{row.truncated:.1%}"]))
    return table


def _plot(rows: Sequence[Cost], reference: str, path: Path) -> None:
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row.tokenizer for row in rows))
    languages = list(dict.fromkeys(row.language for row in rows))[::-1]
    figure = Figure(figsize=(7, 1 + 0.22 * len(languages) * max(1, len(names) / 2)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(names)
    for place, name in enumerate(names):
        own = {row.language: row.premium or 0.0 for row in rows if row.tokenizer == name}
        at = [index - 0.4 + height * (place + 0.5) for index in range(len(languages))]
        axes.barh(at, [own[language] for language in languages], height, label=name)
    axes.set_yticks(range(len(languages)), languages)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel(f"tokens of the same text over those of {reference}")
    axes.legend()
    figure.savefig(path, metadata={"Date": None})
