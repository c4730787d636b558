"""Make comparisons of what sources bear out with what they do not, from demonstrations that answer out of passages.

    python -m posttrain.data.contrast inputs.data=DIR output=DIR

The demonstrations are those that `data.retrieve` put passages into. One whose quotes all stand in its passages, or that
abstains, is the best response of its comparison. Ranked below it are, each only where it can be made:

    rank 2  to abstain where the passages are quoted; the answer without its quotes
    rank 3  the answer with a few words of another row's (`altered`), the answer to another passage (`retold`), and
            another row's answer as it is (`borrowed`)

A demonstration whose quotes do not stand in its passages made them up, and is ranked below abstaining. What neither
quotes nor abstains tells nothing, and drops. Each made response is checked: it does not do what the best one does.
"""

from __future__ import annotations

import difflib
import random
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TypeVar

from posttrain.data.chat.passages import passages_of
from posttrain.data.checks.attribution import attribute, find_quote, quotes_of
from posttrain.data.checks.refusals import ABSTENTIONS, abstains
from posttrain.data.config.contrast import ContrastConfig
from posttrain.data.messages import Message, message_dicts
from posttrain.data.records import SPLITS, Comparison, Demonstration, dataset_type, read_records, write_dataset
from posttrain.data.rows.accounting import SourceCounts, accounting, told
from posttrain.stage import heartbeat
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError
from posttrain.stage.files import write_json_atomic

T = TypeVar("T")

ANNOTATOR = "sources"
"""Who ranked the comparisons."""
BEST, UNPROVEN, WRONG = 1, 2, 3
MOST_CHANGED = 3
"""Words in a row that an altered response has of another."""
_MARKS = re.compile(r"[“„«\"「][^“”„«»\"「」]*[”“»\"」]")
_WORD = re.compile(r"\w+|[^\w\s]", re.UNICODE)


def run(config: ContrastConfig, context: Context) -> StageResult:
    """Write the comparisons, on the sides that their demonstrations have, and their accounting."""
    directory = context.inputs["data"]
    if dataset_type(directory) is not Demonstration:
        raise UsageError(f"inputs.data: {directory.name} holds no demonstrations; give those that data.retrieve made")
    rng = random.Random(f"{context.spec.seed} contrast")
    counts: dict[str, SourceCounts] = {}
    made: list[Comparison] = []
    for split in SPLITS:
        # Of one side alone, or a response that is held out would be trained on.
        rows = read_records(directory / f"{split}.parquet", Demonstration)
        donors = donors_of(rows)
        for row in rows:
            heartbeat.pulse()
            own = counts.setdefault(row.source, SourceCounts())
            own.rows_in += 1
            ranked = contrasts(row, donors.get(row.language, []), config, rng)
            if isinstance(ranked, str):
                own.drop(ranked)
                continue
            made.append(_comparison(row, ranked))
            own.keep(row.split)
    summary = accounting(counts)
    if not made:
        raise UsageError(
            f"data.contrast: no row kept of {summary['rows_in']} (dropped: {summary['dropped']}); give demonstrations "
            "that quote the passages in their prompts"
        )
    write_dataset(context.output, made, Comparison)
    write_json_atomic(context.output / "accounting.json", summary)
    metrics = {"rows_in": summary["rows_in"], "rows_kept": summary["kept"]}
    licenses = sorted({row.license for row in made})
    return StageResult(metrics, told(summary), licenses=licenses, facts={"accounting": summary})


def donors_of(rows: Sequence[Demonstration]) -> dict[str, list[str]]:
    """Return the responses that quote what stands in their passages, by language."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        text = row.completion[-1].content
        if attribute(text, passages_of(message_dicts(row.prompt))).holds:
            found[row.language].append(text)
    return found


def contrasts(
    row: Demonstration, donors: Sequence[str], config: ContrastConfig, rng: random.Random
) -> list[tuple[str, int]] | str:
    """Return responses to a row's prompt with their ranks, the best first, or why there are none."""
    passages = passages_of(message_dicts(row.prompt))
    said = row.completion[-1].content
    unknown = f"{ABSTENTIONS.get(row.language, ABSTENTIONS['en'])[0]}."
    cited = attribute(said, passages)
    if abstains(said):
        best, others = said, _not_answered(passages, donors, config, rng)
    elif cited.unsupported:
        best, others = unknown, chain([(said, WRONG)], _not_answered(passages, donors, config, rng))
    elif cited.holds:
        best, others = said, _answered(said, unknown, passages, donors, config, rng)
    else:
        return "no_quote"
    ranked = {best: BEST}
    for text, rank in others:
        if len(ranked) < config.responses:
            ranked.setdefault(text, rank)
    return list(ranked.items()) if len(ranked) > 1 else "nothing_to_contrast"


def _answered(
    said: str, unknown: str, passages: Sequence[str], donors: Sequence[str], config: ContrastConfig, rng: random.Random
) -> Iterator[tuple[str, int]]:
    retold = [text for passage in _shuffled(passages, rng) if (text := retell(said, passage))]
    yield from [(text, WRONG) for text in retold[:1]]
    for donor in _drawn(donors, config.donor_tries, rng):
        if (text := alter(said, donor, passages, rng)) is not None:
            yield text, WRONG
            break
    yield unknown, UNPROVEN
    if bare := " ".join(_MARKS.sub(" ", said).split()):
        yield bare, UNPROVEN
    yield from [(text, WRONG) for text in retold[1:]]


def _not_answered(
    passages: Sequence[str], donors: Sequence[str], config: ContrastConfig, rng: random.Random
) -> Iterator[tuple[str, int]]:
    drawn = _drawn(donors, config.donor_tries, rng)
    for passage in _shuffled(passages, rng)[: config.responses - 2]:
        if text := next((text for donor in drawn if (text := retell(donor, passage))), None):
            yield text, WRONG
    yield from [(donor, WRONG) for donor in drawn if not attribute(donor, passages).holds][:1]


def retell(said: str, passage: str) -> str | None:
    """Return a response of one quote as it would be if it answered out of another passage; None where it cannot be.

    The words in which the quote and that passage differ are exchanged all through the response.
    """
    quotes = quotes_of(said)
    if len(quotes) != 1 or find_quote(quotes[0], [passage]):
        return None
    changes = _changes(quotes[0], passage)
    if not changes or any(not old for old, _ in changes):
        return None
    text = _exchanged(said, changes)
    return text if find_quote(quotes_of(text)[0], [passage]) else None


def alter(said: str, donor: str, passages: Sequence[str], rng: random.Random) -> str | None:
    """Return a response with a few words in a row exchanged for those of another; None where that changes no quote.

    What comes out must not stand in the passages.
    """
    changes = [
        change
        for change in _changes(said, donor)
        if all(0 < len(_WORD.findall(side)) <= MOST_CHANGED for side in change)
    ]
    for change in _shuffled(changes, rng):
        text = _exchanged(said, [change])
        if attribute(text, passages).unsupported:
            return text
    return None


def _changes(text: str, other: str) -> list[tuple[str, str]]:
    """Return what of a text would have to become what to make it another, in runs of words."""
    ours, theirs = _WORD.findall(text), _WORD.findall(other)
    blocks = difflib.SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes()
    runs = [(" ".join(ours[i:j]), " ".join(theirs[k:m])) for tag, i, j, k, m in blocks if tag != "equal"]
    return list(dict.fromkeys(runs))


def _exchanged(text: str, changes: Sequence[tuple[str, str]]) -> str:
    """Return a text with runs of words exchanged wherever they stand, all at once.

    A run that begins with another letter case than the one that was found is put in the case of that place.
    """
    wanted = {tuple(_WORD.findall(old.casefold())): (old, new) for old, new in changes}
    longest = sorted(wanted, key=len, reverse=True)
    found = list(_WORD.finditer(text))
    words = [match[0].casefold() for match in found]
    parts, end, at = [], 0, 0
    while at < len(words):
        run = next((run for run in longest if tuple(words[at : at + len(run)]) == run), None)
        if run is None:
            at += 1
            continue
        start, stop = found[at].start(), found[at + len(run) - 1].end()
        parts += [text[end:start], _cased(text[start], *wanted[run])]
        end, at = stop, at + len(run)
    return "".join([*parts, text[end:]])


def _cased(stood: str, old: str, new: str) -> str:
    if stood.isupper() == old[:1].isupper():
        return new
    return (new[:1].upper() if stood.isupper() else new[:1].lower()) + new[1:]


def _shuffled(values: Sequence[T], rng: random.Random) -> list[T]:
    return rng.sample(list(values), len(values))


def _drawn(donors: Sequence[str], most: int, rng: random.Random) -> list[str]:
    return rng.sample(donors, min(most, len(donors)))


def _comparison(row: Demonstration, ranked: Sequence[tuple[str, int]]) -> Comparison:
    shared = row.model_dump(exclude={"prompt", "completion"})
    turns = [Message(role="assistant", content=text) for text, _ in ranked]
    ranks = [rank for _, rank in ranked]
    return Comparison(**shared, prompt=row.prompt, responses=turns, ranks=ranks, annotator=ANNOTATOR)


if __name__ == "__main__":
    stage_main(run, ContrastConfig, kind="dataset")
