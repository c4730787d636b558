"""Ask a judge which of two policies answers better, or how good the answers are; and how far people agree with it.

    python -m posttrain.evaluate.judge inputs.before=DIR inputs.after=DIR inputs.human=DIR output=DIR judge.model=NAME

`before` and `after` are scores of `evaluate.policy` on the same items. `human` is a dataset of comparisons that people
made: the judge is asked about them too, and what they agree on stands beside every figure of his. Alone, it tells how
good the judge is. `inputs.judge` is a model of ours that judges, in place of one behind a server.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posttrain.data.records import SPLITS, Comparison, dataset_type, read_records
from posttrain.evaluate.config.judge import JudgeConfig
from posttrain.evaluate.inputs import take_evenly
from posttrain.evaluate.measure.item_scores import ScoredItem, prompt_text, read_items
from posttrain.evaluate.measure.judgements import (
    SWAPPED,
    Judgement,
    summarise_agreement,
    summarise_grades,
    summarise_judgements,
)
from posttrain.sample.backends.judge import (
    JudgeModel,
    Pair,
    Place,
    grade_question,
    pair_questions,
    read_grade,
    read_place,
)
from posttrain.sample.backends.local_judge import LocalJudge
from posttrain.sample.config.judge import JudgeModelConfig
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import PosttrainError, UsageError
from posttrain.stage.files import write_json_atomic

log = logging.getLogger(__name__)
WHERE = "evaluate.judge.judge"


@dataclasses.dataclass(frozen=True)
class Asked:
    """Two responses to a request, and what people say of them."""

    id: str
    task: str
    language: str
    cluster: str
    pair: Pair
    people: Place | None = None


def run(config: JudgeConfig, context: Context) -> StageResult:
    """Write judgements.jsonl, a line for each pair or graded response with the judge's replies, and summary.json."""
    human = take_evenly(_of_people(context.inputs["human"]), config.max_items) if "human" in context.inputs else []
    items = _items(config, context.inputs)
    if not items and not human:
        raise UsageError("evaluate.judge: nothing to judge; give inputs.after and inputs.before, or inputs.human")
    judge = _judge(config.judge, context)
    ask = _ask_pairs if config.mode == "pairwise" else _ask_grades
    judged, texts, calls = ask(judge, [*items, *human])
    own, checked = judged[: len(items)], judged[len(items) :]
    summary: dict[str, Any] = {"mode": config.mode, "judge": config.judge.model, "items": None, "human": None}
    seed = context.spec.seed
    try:
        if own:
            summarise = summarise_judgements if config.mode == "pairwise" else summarise_grades
            summary["items"] = summarise(own, config.confidence, seed)
        if checked:
            summary["human"] = summarise_agreement(checked, config.confidence, seed)
    except ValueError as error:
        said = f"the first reply ends {texts[0][-200:]!r}; raise {WHERE}.max_tokens, or ask another judge"
        raise PosttrainError(f"evaluate.judge: {error}; {said}") from None
    with (context.output / "judgements.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in _lines(judged, texts))
    write_json_atomic(context.output / "summary.json", summary)
    return _result(summary, calls)


def _judge(judge: JudgeModelConfig, context: Context) -> JudgeModel | LocalJudge:
    if (directory := context.inputs.get("judge")) is not None:
        return LocalJudge(directory, judge, context.work, WHERE)
    return JudgeModel(judge, context.work, WHERE)


def _items(config: JudgeConfig, inputs: dict[str, Path]) -> list[Asked]:
    """Return the answers of both policies to each item that both were asked."""
    if "after" not in inputs and "before" not in inputs:
        return []
    if missing := {"after", "before"} - inputs.keys():
        raise UsageError(f"evaluate.judge: inputs.{missing.pop()} is missing; a judge compares two policies, give both")
    before = {item.id: item for item in read_items(inputs["before"])}
    after = read_items(inputs["after"])
    both = [(before[item.id], item) for item in after if item.id in before]
    if not both:
        raise UsageError(
            "evaluate.judge: inputs.before and inputs.after share no item; evaluate both on the same items"
        )
    if unshared := len(before) + len(after) - 2 * len(both):
        log.warning("%d items were asked of one policy alone and are left out; %d are judged", unshared, len(both))
    return take_evenly([_asked(one, other) for one, other in both], config.max_items)


def _asked(before: ScoredItem, after: ScoredItem) -> Asked:
    pair = Pair(after.prompt, before.shown, after.shown, after.language)
    return Asked(after.id, after.task, after.language, after.cluster, pair)


def _of_people(directory: Path) -> list[Asked]:
    """Return the pairs of responses that people compared, ties included; those of one request go together."""
    if dataset_type(directory) is not Comparison:
        raise UsageError(f"{directory.name}: holds no comparisons; give inputs.human a dataset of them")
    asked = []
    for record in (record for split in SPLITS for record in read_records(directory / f"{split}.parquet", Comparison)):
        prompt = prompt_text(record.prompt)
        texts = [turn.content for turn in record.responses]
        for one in range(len(texts)):
            for other in range(one + 1, len(texts)):
                pair = Pair(prompt, texts[one], texts[other], record.language)
                people = _place(record.ranks[other] - record.ranks[one])
                asked.append(Asked(f"{record.id}/{one}/{other}", record.task, record.language, prompt, pair, people))
    if not asked:
        raise UsageError(f"{directory.name}: no comparison; look at its accounting.json for where they went")
    return asked


def _place(lead: float) -> Place:
    return "first" if lead > 0 else "second" if lead < 0 else "tie"


def _ask_pairs(judge: JudgeModel | LocalJudge, asked: Sequence[Asked]) -> tuple[list[Judgement], list[str], int]:
    questions = [question for one in asked for question in pair_questions(one.pair, judge.rubric(one.language))]
    texts, calls = judge.ask(questions)
    judged = [
        _judgement(one, (read_place(straight), read_place(swapped)))
        for one, straight, swapped in zip(asked, texts[::2], texts[1::2], strict=True)
    ]
    return judged, texts, calls


def _ask_grades(judge: JudgeModel | LocalJudge, asked: Sequence[Asked]) -> tuple[list[Judgement], list[str], int]:
    questions = [
        grade_question(one.pair.prompt, text, judge.rubric(one.language))
        for one in asked
        for text in (one.pair.one, one.pair.other)
    ]
    texts, calls = judge.ask(questions)
    judged = []
    for one, *replies in zip(asked, texts[::2], texts[1::2], strict=True):
        grades = [read_grade(reply) for reply in replies]
        first, second = grades
        place = None if first is None or second is None else _place(first - second)
        judgement = _judgement(one, (place, SWAPPED[place] if place is not None else None))
        judged.append(dataclasses.replace(judgement, grades=(first, second)))
    return judged, texts, calls


def _judgement(one: Asked, places: tuple[Place | None, Place | None]) -> Judgement:
    lengths = (len(one.pair.one.split()), len(one.pair.other.split()))
    return Judgement(one.id, one.task, one.language, one.cluster, places, lengths, one.people)


def _lines(judged: Sequence[Judgement], texts: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {**dataclasses.asdict(one), "verdict": one.verdict, "replies": list(replies)}
        for one, *replies in zip(judged, texts[::2], texts[1::2], strict=True)
    ]


def _result(summary: dict[str, Any], calls: int) -> StageResult:
    metrics: dict[str, Any] = {"calls": calls}
    said = []
    if (own := summary["items"]) is not None:
        wins = own["overall"]["win_rate"]
        metrics |= {
            "win_rate": wins["value"],
            "length_controlled": own["length_controlled"]["value"],
            "unread": own["unread"],
        }
        said.append(f"win rate {_shown(wins)}, {own['length_controlled']['value']:.2f} at equal length")
        if "rise" in own:
            metrics |= {"grade": own["after"]["value"], "grade_rise": own["rise"]["value"]}
            said[:0] = [f"grade {own['after']['value']:.2f}, {own['rise']['value']:+.2f}"]
    if (people := summary["human"]) is not None:
        beyond = people["overall"]["kappa"]
        metrics |= {"kappa": beyond["value"], "people_agree": people["overall"]["same"]["value"]}
        said.append(f"kappa to people {_shown(beyond)} over {beyond['n']}")
    else:
        said.append("people's agreement with it is not known")
    biased = next((part["position"] for part in (own, people) if part is not None and part["position"]["biased"]), None)
    if biased is not None and summary["mode"] == "pairwise":
        share = biased["first"]["value"]
        metrics["first_place"] = share
        log.warning(
            "the judge prefers a place: the first response won %.0f %% of the replies that chose one", 100 * share
        )
        said.append(f"biased: the first place wins {share:.0%}")
    return StageResult(metrics=metrics, headline="; ".join(said))


def _shown(interval: dict[str, float]) -> str:
    return f"{interval['value']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


if __name__ == "__main__":
    stage_main(run, JudgeConfig, kind="judgement")
