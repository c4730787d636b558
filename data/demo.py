"""Generates the demo's sources from a seed: text, demonstrations, comparisons and evaluation items.

    python -m posttrain.data.demo output=DIR seed=0

Every answer can be verified. No prompt occurs twice in all files together, and what gold comparisons and evaluation
items are about (the sum, the sentence, the passage, the action in its wording) occurs in no other file, in no language.

The demonstrations are imperfect on purpose: they pad answers with filler and make answers up where they should
abstain. The comparisons show better and worse, as three annotators see it; how long an answer is does not tell whether
it is right.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from posttrain.data.checks.scorers import preference_score, ranks
from posttrain.data.config.demo import AnnotatorConfig, DemoConfig
from posttrain.data.made.demo_families import FAMILIES, Problem
from posttrain.data.made.demo_words import LEXICONS
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError

LICENSE = "CC0-1.0"
HELD_OUT_SHARE = 0.15
"""Share of contents that only gold comparisons and evaluation items use."""
STATEMENTS_PER_TEXT = {
    "arithmetic": 3,
    "question_answering": 2,
    "extraction": 1,
    "classification": 1,
    "refusal": 1,
}
"""What each text states, by family: the harder a family is to learn, the more."""
HABIT = 0.9
"""How often filler is the writer's habitual one."""
OPENING, CLOSING = 0.4, 0.8
"""How often a ranked response that talks more than it must opens and closes with filler."""
WRONG_PADDING = 0.4
"""Share of wrong responses that do."""
CURT = 0.5
"""Share of wrong responses that say less than the ideal one: a number without its sum, a purchase without its count."""
MOST_DRAWS = 2000
"""Draws in a row without a new prompt after which a family counts as used up."""

Row = dict[str, Any]


def run(config: DemoConfig, context: Context) -> StageResult:
    """Write the five files of the demo."""
    seed = context.spec.seed
    source = ProblemSource(seed)
    demonstrated, compared, gold, asked, told = (
        random.Random(f"{seed} {name}") for name in ("demonstrations", "comparisons", "gold", "evaluation", "text")
    )
    shares, per_prompt = config.demonstration_shares, config.responses_per_prompt
    problems = {
        "demonstrations": source.draw(config.num_demonstrations, False, "num_demonstrations", demonstrated, shares),
        "comparisons": source.draw(config.num_comparisons, False, "num_comparisons", compared),
        "gold": source.draw(config.num_gold_comparisons, True, "num_gold_comparisons", gold),
        "evaluation": source.draw(config.num_evaluation_items, True, "num_evaluation_items", asked),
    }
    rows = {
        "demonstrations": demonstrations(
            problems["demonstrations"],
            config.missing_abstention_rate,
            config.opening_rate,
            config.closing_rate,
            demonstrated,
        ),
        "comparisons": comparisons(problems["comparisons"], config.annotators, per_prompt, compared),
        "gold_comparisons": gold_comparisons(problems["gold"], per_prompt, gold),
        "evaluation": evaluation_items(problems["evaluation"]),
        "text": texts(seed, config.num_texts, told),
    }
    counts = {name: _write(context.output / f"{name}.jsonl", made) for name, made in rows.items()}
    headline = f"{counts['demonstrations']} demonstrations, {counts['comparisons']} comparisons"
    return StageResult(metrics=counts, headline=headline, licenses=[LICENSE], facts={"families": list(FAMILIES)})


def _write(path: Path, rows: Iterable[Row]) -> int:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return len(lines)


def held_out(content: str, seed: int) -> bool:
    """Return whether a content is kept for gold comparisons and evaluation."""
    digest = hashlib.blake2b(f"{seed}|{content}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") < HELD_OUT_SHARE * 2**32


class ProblemSource:
    """Draws problems evenly over families and languages, and never one prompt twice."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._seen: set[str] = set()

    def draw(
        self, count: int, want_held_out: bool, knob: str, rng: random.Random, shares: dict[str, int] | None = None
    ) -> list[Problem]:
        """Return ``count`` new problems from one side of the hold-out, in random order.

        ``shares`` are relative frequencies of the families, equal unless given; languages are equally frequent. Raises
        UsageError, naming ``knob``, when a family has no new prompt left.
        """
        families = [family for family in FAMILIES for _ in range((shares or {}).get(family, 1))]
        cells = [(family, language) for language in LEXICONS for family in families]
        problems = [self._draw_one(*cells[i % len(cells)], want_held_out, knob, rng) for i in range(count)]
        rng.shuffle(problems)
        return problems

    def _draw_one(self, family: str, language: str, want_held_out: bool, knob: str, rng: random.Random) -> Problem:
        for _ in range(MOST_DRAWS):
            problem = FAMILIES[family](rng, language)
            if (
                problem.prompt not in self._seen
                and held_out(f"{family} {problem.content}", self._seed) == want_held_out
            ):
                self._seen.add(problem.prompt)
                return problem
        raise UsageError(f"data.demo.{knob}: {family} ({language}) has no unused prompt left; ask for fewer rows")


def demonstrations(
    problems: Iterable[Problem],
    missing_abstention_rate: float,
    opening_rate: float,
    closing_rate: float,
    rng: random.Random,
) -> Iterator[Row]:
    """Yield demonstrations: right, but often padded, and made up where they should abstain."""
    for problem in problems:
        response = problem.ideal
        if problem.made_up is not None and rng.random() < missing_abstention_rate:
            response = problem.made_up
        response = padded(response, problem.language, opening_rate, closing_rate, rng)
        yield {
            "prompt": _user(problem.prompt),
            "completion": [{"role": "assistant", "content": response}],
            **_about(problem),
        }


def comparisons(
    problems: Iterable[Problem], annotators: Sequence[AnnotatorConfig], responses_per_prompt: int, rng: random.Random
) -> Iterator[Row]:
    """Yield ranked responses, the annotators taking turns."""
    for index, problem in enumerate(problems):
        annotator = annotators[index % len(annotators)]
        responses = responses_to_rank(problem, responses_per_prompt, rng)
        scores = [annotated(response, problem, annotator, rng) for response in responses]
        yield _comparison(problem, responses, scores, annotator.name)


def gold_comparisons(problems: Iterable[Problem], responses_per_prompt: int, rng: random.Random) -> Iterator[Row]:
    """Yield held-out responses, ranked by the true preference."""
    for problem in problems:
        responses = responses_to_rank(problem, responses_per_prompt, rng)
        yield _comparison(problem, responses, [true_preference(r, problem) for r in responses], "gold")


def evaluation_items(problems: Iterable[Problem]) -> Iterator[Row]:
    """Yield held-out prompts with what it takes to judge a response."""
    for problem in problems:
        yield {
            "prompt": _user(problem.prompt),
            "reference": problem.reference,
            "scorer": problem.scorer,
            "ideal": problem.ideal,
            "group": f"{problem.family} {problem.content}",
            **_about(problem),
        }


def texts(seed: int, count: int, rng: random.Random) -> Iterator[Row]:
    """Yield plain text for the base model: statements and filler of one language, without requests and answers."""
    languages = list(LEXICONS)
    for index in range(count):
        language = languages[index % len(languages)]
        words = LEXICONS[language]
        sentences = [
            _statement(family, language, seed, rng)
            for family, count in STATEMENTS_PER_TEXT.items()
            for _ in range(count)
        ]
        sentences.append(rng.choice([*words.openings, *words.closings, f"{words.refusal}.", f"{words.abstention}."]))
        rng.shuffle(sentences)
        yield {"text": " ".join(sentences), "language": language}


def _statement(family: str, language: str, seed: int, rng: random.Random) -> str:
    while True:
        problem = FAMILIES[family](rng, language)
        if not held_out(f"{family} {problem.content}", seed):
            return problem.statement


def padded(response: str, language: str, opening_rate: float, closing_rate: float, rng: random.Random) -> str:
    """Return the response with filler before and after it, each with its own probability."""
    words = LEXICONS[language]
    before = [_filler(words.openings, rng)] if rng.random() < opening_rate else []
    after = [_filler(words.closings, rng)] if rng.random() < closing_rate else []
    return " ".join([*before, response, *after])


def _filler(phrases: tuple[str, ...], rng: random.Random) -> str:
    return phrases[0] if rng.random() < HABIT else rng.choice(phrases[1:])


def responses_to_rank(problem: Problem, count: int, rng: random.Random) -> list[str]:
    """Return distinct responses; the ideal one and a wrong one are among them.

    Right ones are terse or padded, wrong ones shorter than the ideal one, as long, or padded: length tells nothing.
    """
    chosen = [problem.ideal, _wrong(problem, rng)]
    while len(chosen) < count:
        response = (
            padded(problem.ideal, problem.language, OPENING, CLOSING, rng)
            if rng.random() < 0.5
            else _wrong(problem, rng)
        )
        if response not in chosen:
            chosen.append(response)
    rng.shuffle(chosen)
    return chosen


def _wrong(problem: Problem, rng: random.Random) -> str:
    response = rng.choice(problem.curt if rng.random() < CURT else problem.wrong)
    return padded(response, problem.language, OPENING, CLOSING, rng) if rng.random() < WRONG_PADDING else response


def true_preference(response: str, problem: Problem) -> float:
    """Return the true preference for a response to a problem."""
    return preference_score(response, problem.reference, problem.scorer, problem.ideal)


def annotated(response: str, problem: Problem, annotator: AnnotatorConfig, rng: random.Random) -> float:
    """Return the true preference as an annotator sees it: to a taste, with noise, and with a bias for length."""
    noise = rng.gauss(0.0, annotator.noise)
    seen = annotator.taste * true_preference(response, problem)
    return seen + noise + annotator.length_bias * len(response.split())


def _comparison(problem: Problem, responses: list[str], scores: list[float], annotator: str) -> Row:
    return {
        "prompt": _user(problem.prompt),
        "responses": responses,
        # Scores are sums of hundredths: rounding makes equal ones equal.
        "ranks": ranks([round(score, 6) for score in scores]),
        "annotator": annotator,
        **_about(problem),
    }


def _user(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}]


def _about(problem: Problem) -> Row:
    return {"language": problem.language, "task": problem.family}


if __name__ == "__main__":
    stage_main(run, DemoConfig, kind="sources")
