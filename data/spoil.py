"""Plants into the demo's demonstrations what curation is to find: leaked items, copies, garbage and personal data.

    python -m posttrain.data.spoil inputs.sources=DIR output=DIR seed=0

Good rows stay as they are, and stand in a random order among the spoilt ones; ids say what was done to a row, so that
what a dataset kept can be counted. The evaluation items are parted into those that leaked and those that did not: what
a model gains on the first and not on the second it has learned by heart.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from posttrain.data.config.spoil import SpoilConfig
from posttrain.data.made.demo_spoils import GARBAGE, Row, almost, personal, within
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError

LICENSE = "CC0-1.0"
FILES = ("demonstrations.jsonl", "evaluation.jsonl", "text.jsonl")
"""What the demo's sources must hold."""


def run(config: SpoilConfig, context: Context) -> StageResult:
    """Write demonstrations.jsonl, spoilt, and the evaluation items as leaked.jsonl and fresh.jsonl."""
    sources = context.inputs.get("sources")
    if sources is None:
        raise UsageError("data.spoil: nothing to spoil; give inputs.sources=DIR, made by data.demo")
    demonstrations, items, texts = (_read(sources / name) for name in FILES)
    rng = random.Random(f"{context.spec.seed} spoil")
    leaked, fresh = part(items, config.leaked_share, rng)
    rows = [*spoilt(demonstrations, config, rng), *leaks(leaked, config.leak_copies, texts, rng)]
    rng.shuffle(rows)
    for name, made in {"demonstrations": rows, "leaked": leaked, "fresh": fresh}.items():
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in made)
        (context.output / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    counts = Counter(kind_of(row["id"]) for row in rows)
    headline = f"{len(rows):,} demonstrations, {counts['plain']:,} of them as they were; {len(leaked):,} items leaked"
    metrics = {"demonstrations": len(rows), "leaked_items": len(leaked), "fresh_items": len(fresh)}
    facts = {"rows": dict(sorted(counts.items()))}
    return StageResult(metrics=metrics, headline=headline, licenses=[LICENSE], facts=facts)


def _read(path: Path) -> list[Row]:
    if not path.exists():
        raise UsageError(f"data.spoil: {path} is not there; inputs.sources must be made by data.demo")
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def kind_of(own_id: str) -> str:
    """Return what was done to a row, by its id."""
    return own_id.partition("-")[0]


def part(items: Sequence[Row], share: float, rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Return the items that leak and those that do not, the share of each task and language alike."""
    cells: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for item in items:
        cells[item["task"], item["language"]].append(item)
    leaked: list[Row] = []
    fresh: list[Row] = []
    for cell in cells.values():
        drawn = rng.sample(cell, len(cell))
        count = round(share * len(cell))
        leaked += drawn[:count]
        fresh += drawn[count:]
    return leaked, fresh


def spoilt(rows: Sequence[Row], config: SpoilConfig, rng: random.Random) -> Iterator[Row]:
    """Yield all rows: plain, as garbage or with personal data; copies of plain ones besides."""
    shares = (config.garbage_share, config.personal_share, config.copied_share)
    if sum(shares) > 1:
        raise UsageError(
            f"data.spoil: garbage_share, personal_share and copied_share add up to {sum(shares):g}; they are parts of "
            "the same rows, so make it 1 at most"
        )
    order = rng.sample(range(len(rows)), len(rows))
    garbage, private, copied = (round(share * len(rows)) for share in shares)
    kinds = list(GARBAGE.items())
    for place, number in enumerate(order):
        row = rows[number]
        if place < garbage:
            kind, spoil = kinds[place % len(kinds)]
            yield spoil(row, rng) | {"id": f"{kind}-{number}"}
        elif place < garbage + private:
            yield personal(row, rng) | {"id": f"personal-{number}"}
        else:
            yield row | {"id": f"plain-{number}"}
            if place < garbage + private + copied:
                for copy in range(config.copies):
                    kind, made = ("copy", row) if copy % 2 == 0 else ("almost", almost(row, rng))
                    yield made | {"id": f"{kind}-{number}-{copy}"}


def leaks(items: Iterable[Row], copies: int, texts: Sequence[Row], rng: random.Random) -> Iterator[Row]:
    """Yield each item with its ideal answer as demonstrations; every second one comes after a sentence of ``texts``."""
    for number, item in enumerate(items):
        row = {name: item[name] for name in ("prompt", "language", "task")}
        row["completion"] = [{"role": "assistant", "content": item["ideal"]}]
        for copy in range(copies):
            if copy % 2 == 0:
                yield row | {"id": f"leak-{number}-{copy}"}
            else:
                before = rng.choice(texts)["text"].partition(". ")[0]
                yield within(row, f"{before}.") | {"id": f"within-{number}-{copy}"}


if __name__ == "__main__":
    stage_main(run, SpoilConfig, kind="sources")
