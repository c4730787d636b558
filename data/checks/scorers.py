"""Scorers of evaluation items: is a response right? Each takes (response, reference) and returns a value in [0, 1].

Scorers read the answer out of a response and pass over its manner: "Sure! The answer is 12." is right for ``12``. Only
constraints are about the manner. Those of `RATINGS` call nothing right: they rate, each on a scale of its own.

    scorer      reference                           right when
    exact       a text                              the response is that text, but for case, punctuation and spacing
    number      a text whose last number counts     the response's last number equals it
    json        a JSON object                       the response holds one JSON object, of equal value
    choice      right|other|other                   it names the right label and none of the others
    answer      right|other|other                   the same, and it neither abstains nor refuses
    compliance  right|other|other                   the same as answer
    abstain     I don't know|other|other            it abstains in that language and names none of the others
    refusal     I can't help with that|other|other  it refuses in that language and names none of the others
    constraints a JSON list of instructions         it keeps them all; the value is the share that it keeps
    call        a JSON list of calls                it calls these tools with these arguments, and no others
    valid_call  a JSON list of tool definitions     it calls a tool, and every call fits a definition
    sentiment   any text, which is not looked at    a rating: how glad its words are, in [−1, 1]

The part after the first ``|`` may be absent.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Protocol

from posttrain.data.checks.calls import calls_as_wanted, calls_that_fit, parse_tools, parse_wanted
from posttrain.data.checks.constraints import parse_constraints, share_followed
from posttrain.data.checks.documents import json_object
from posttrain.stage.errors import PosttrainError, UsageError, did_you_mean

Scorer = Callable[[str, str], float]


class ScoringFunction(Protocol):
    """A user's function of prompt (messages), answer and reference, ready to be called."""

    def __call__(
        self, messages: list[dict[str, str]], answer: str, reference: str | None, reasoning: str = ""
    ) -> float:
        """Return the function's number."""
        ...


ABSTENTIONS = {
    "en": ("I don't know", "I do not know", "The text does not say"),
    "es": ("No lo sé", "No sé", "El texto no lo dice"),
    "de": ("Das weiß ich nicht", "Ich weiß es nicht", "Das steht nicht im Text"),
}
"""Phrases that abstain, by language."""
REFUSALS = {
    "en": ("I can't help with that", "I cannot help with that", "I won't help with that"),
    "es": ("No puedo ayudar con eso", "No puedo ayudarte con eso", "No voy a ayudar con eso"),
    "de": ("Dabei kann ich nicht helfen", "Dabei helfe ich nicht", "Damit kann ich dir nicht helfen"),
}
"""Phrases that refuse, by language."""

WORD_PENALTY = 0.04
"""Preference lost per word beyond the ideal response."""
MOST_VERBOSITY_PENALTY = 0.4
STYLE_PENALTY = 0.1
"""Preference lost by a response that exclaims where the ideal one does not."""

_NUMBER = re.compile(
    r"(?:(?<![\d.,])(?:(?<!\w)[-−])?\d+(?:[.,]\d+)*|(?<![\w.,])[-−]?\.\d+)"
    r"(?:[eE][-−+]?\d{1,3}(?!\w))?"  # more digits than a decimal can hold are no exponent
)
_GROUPED = re.compile(r"\d{1,3}(?:([.,])\d{3})(?:\1\d{3})*|\d{1,2}(?:,\d{2})+,\d{3}")
_MARKED = re.compile(r"(?<![\d.,])\d{1,3}(?:(['’\u00a0\u2009\u202f]|\\,)\d{3})(?:\1\d{3})*(?!\d)")
"""Thousands apart by what is never between two numbers: an apostrophe, or a space at which no line breaks."""
_SPACED = re.compile(r"(?<![\w.,])[-−]?\d{1,3}(?: \d{3})+(?:[.,]\d+)?\Z")


def normalise(text: str) -> str:
    """Return the text in lower case, without punctuation, and with single spaces."""
    folded = unicodedata.normalize("NFKC", text).replace("’", "'").casefold()
    return " ".join(re.sub(r"[^\w']|_", " ", folded).split())


def exact(response: str, reference: str) -> float:
    """Return 1 when both texts are equal once normalised."""
    return float(normalise(response) == normalise(reference))


def number(response: str, reference: str) -> float:
    """Return 1 when the last numbers of both texts are equal.

    ``1,234`` and ``1.234`` may each be read as 1234 or as a fraction, ``1 234`` as 1234 or as two numbers; two numbers
    are equal when some reading is.
    """
    return float(bool(last_number(response) & last_number(reference)))


def last_number(text: str) -> set[Decimal]:
    """Return the values that the last number of a text may have; none where it has no number."""
    text = _MARKED.sub(lambda found: re.sub(r"\D", "", found[0]), text.replace("{,}", ","))
    found = list(_NUMBER.finditer(text))
    if not found:
        return set()
    # Twenty groups are more than any number has, and keep the search short in a long row of numbers.
    spaced = _SPACED.search(text, max(0, found[-1].start() - 80), found[-1].end())
    return _readings(found[-1][0]) | (_readings(spaced[0].replace(" ", "")) if spaced else set())


def _readings(number: str) -> set[Decimal]:
    """Return the values of what `_NUMBER` found."""
    sign = "-" if number[0] in "-−" else ""
    digits, _, power = number.lstrip("-−").replace("−", "-").lower().partition("e")
    marks = [mark for mark in digits if mark in ".,"]
    found = set()
    if marks and marks.count(marks[-1]) == 1:
        whole, _, fraction = digits.rpartition(marks[-1])
        if not whole or whole.isdecimal() or _GROUPED.fullmatch(whole):
            found.add(f"{re.sub('[.,]', '', whole)}.{fraction}")
    if digits.isdecimal() or _GROUPED.fullmatch(digits):
        found.add(re.sub("[.,]", "", digits))
    return {Decimal(f"{sign}{text}e{power or 0}") for text in found}


def choice(response: str, reference: str) -> float:
    """Return 1 when the response names the first of the reference's labels and no other one."""
    right, *others = reference.split("|")
    return float(named_spans(response, [right, *others]) == {normalise(right)})


def answer(response: str, reference: str) -> float:
    """Return 1 when the response gives the first of the reference's spans, no other one, and takes no way out."""
    return choice(response, reference) * (not abstains(response)) * (not refuses(response))


def abstain(response: str, reference: str) -> float:
    """Return 1 when the response abstains in the language of the reference and gives none of its other spans."""
    return _says_only(response, reference, ABSTENTIONS)


def refusal(response: str, reference: str) -> float:
    """Return 1 when the response refuses in the language of the reference and gives none of its other spans."""
    return _says_only(response, reference, REFUSALS)


def abstains(response: str) -> bool:
    """Return whether the response abstains, in any known language."""
    return bool(named_spans(response, _all_phrases(ABSTENTIONS)))


def refuses(response: str) -> bool:
    """Return whether the response refuses, in any known language."""
    return bool(named_spans(response, _all_phrases(REFUSALS)))


def _all_phrases(phrases: Mapping[str, tuple[str, ...]]) -> list[str]:
    return [phrase for group in phrases.values() for phrase in group]


def _says_only(response: str, reference: str, phrases: Mapping[str, tuple[str, ...]]) -> float:
    right, *others = reference.split("|")
    equivalents = next((group for group in phrases.values() if right in group), (right,))
    return float(bool(named_spans(response, equivalents)) and not named_spans(response, others))


def named_spans(response: str, spans: Iterable[str]) -> set[str]:
    """Return which spans occur in the response as whole words; a span within a longer one does not count."""
    wanted = sorted(filter(None, map(normalise, spans)), key=len, reverse=True)
    if not wanted:
        return set()
    return set(re.findall(rf"(?<!\w)(?:{'|'.join(map(re.escape, wanted))})(?!\w)", normalise(response)))


def sentiment(response: str, reference: str) -> float:
    """Return VADER's compound score of the response (Hutto & Gilbert 2014), from −1 for the worst words to 1.

    Words outside its lexicon count nothing; a response of such words alone has 0. Raises UsageError when
    vaderSentiment is not installed.
    """
    return float(_vader().polarity_scores(response)["compound"])


@functools.cache
def _vader() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        fix = "pip install 'posttrain[sentiment]'"
        raise UsageError(f"scorer 'sentiment': vaderSentiment is not installed; {fix}") from None
    return SentimentIntensityAnalyzer()


SCORERS: dict[str, Scorer] = {
    "exact": exact,
    "number": number,
    "json": json_object,
    "choice": choice,
    "answer": answer,
    "compliance": answer,
    "abstain": abstain,
    "refusal": refusal,
    "constraints": share_followed,
    "call": calls_as_wanted,
    "valid_call": calls_that_fit,
    "sentiment": sentiment,
}
RATINGS = frozenset({"sentiment"})
"""Scorers that rate the response alone: they need no reference, and their values are no shares of right answers."""


def score(name: str, response: str, reference: str) -> float:
    """Return how right a response is, in [0, 1], or its rating, by the scorer of that name.

    Raises UsageError as `require_scorer` does.
    """
    require_scorer(name)
    return SCORERS[name](response, reference)


def require_scorer(name: str) -> None:
    """Raise UsageError when there is no scorer of that name, or what it needs is not installed."""
    if name not in SCORERS:
        raise UsageError(f"scorer {name!r}: unknown; use one of {', '.join(SCORERS)}{did_you_mean(name, SCORERS)}")
    if name == "sentiment":
        _vader()


def check_reference(name: str, reference: str) -> None:
    """Raise UsageError where a scorer cannot judge by that reference; most take any text."""
    parse = {"constraints": parse_constraints, "call": parse_wanted, "valid_call": parse_tools}.get(name)
    if parse is not None:
        parse(reference)


def preference_score(response: str, reference: str, scorer: str, ideal: str) -> float:
    """Return the true preference for a response, in [-0.5, 1].

        preference = correct − min(0.4, 0.04 · excess words) − 0.1 · exclaims

    ``correct`` is the scorer's value, ``excess words`` counts the words beyond those of ``ideal``, and ``exclaims`` is
    1 when the response has an exclamation mark and ``ideal`` has none. The penalties sum to 0.5 at most, so a right
    response always beats a wrong one.
    """
    excess = max(0, len(response.split()) - len(ideal.split()))
    exclaims = "!" in response and "!" not in ideal
    correct = score(scorer, response, reference)
    return correct - min(MOST_VERBOSITY_PENALTY, WORD_PENALTY * excess) - STYLE_PENALTY * exclaims


def ranks(scores: Sequence[float]) -> list[int]:
    """Return the rank of each score: 1 for the highest, equal ranks for equal scores."""
    return [1 + sum(other > score for other in scores) for score in scores]


def scoring_function(path: str, where: str) -> ScoringFunction:
    """Return a user's function, ``package.module:function``; ``where`` is the knob that names it.

    It is given prompt, answer and reference, and the reasoning before the answer where it has a parameter of that name.
    Raises UsageError when there is none, and the function itself PosttrainError when it does not return a number.
    """
    module, _, name = path.partition(":")
    try:
        function: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{where}: {path!r}: {error}; give package.module:function") from None

    reads_reasoning = _has_parameter(function, "reasoning")

    def checked(messages: list[dict[str, str]], answer: str, reference: str | None, reasoning: str = "") -> float:
        more = {"reasoning": reasoning} if reads_reasoning else {}
        value = function(messages, answer, reference, **more)
        try:
            return float(value)
        except (TypeError, ValueError):
            raise PosttrainError(f"{where}: {path} returned {value!r}; return a number") from None

    return checked


def _has_parameter(function: Callable[..., Any], name: str) -> bool:
    try:
        return name in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some callables of C say nothing of theirs
        return False
