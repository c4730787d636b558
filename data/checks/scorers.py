"""Scorers of evaluation items: is a response right? Each takes (response, reference) and returns a value in [0, 1].

Scorers read the answer out of a response and pass over its manner: "Sure! The answer is 12." is right for ``12``. Only
constraints are about the manner. Those of `RATINGS` call nothing right: they rate, each on a scale of its own. How
likely an option is, `evaluate.policy` asks the model; elsewhere it is to be said word for word
(`posttrain.data.checks.options`).

    scorer      reference                           right when
    exact       a text                              the response is that text, but for case, spacing and the punctuation
                                                    that means nothing: −1 is not 1, nor C# C++, nor a < b a > b
    f1          a text                              it has the same words; the value is the F1 score of the words
    number      a text whose last number counts     the response's last number equals it
    json        a JSON object                       the response holds one JSON object, of equal value
    json_fields a JSON object                       the one object in it has these fields; the value is their share
    json_schema a JSON Schema                       it holds one JSON object, which fits the schema
    choice      right|other|other                   it names the right label and none of the others
    choice_logprob  right|other|other               the model finds the right one the most likely of them
    choice_logprob_per_byte  the same               the same, by log-probability per byte
    answer      right|other|other                   the same as choice, and it neither abstains nor refuses
    compliance  right|other|other                   the same as answer
    abstain     I don't know|other|other            it abstains in that language and names none of the others
    refusal     I can't help with that|other|other  it refuses in that language and names none of the others
    refused     any text, which is not looked at    it refuses, in any known language and wording
    complied    any text, which is not looked at    it says something, and neither refuses nor abstains
    constraints a JSON list of instructions         it keeps them all; the value is the share that it keeps
    constraints_loose  the same                     the same, without its first or last line, or asterisks
    call        a JSON list of calls                it calls these tools with these arguments, and no others
    valid_call  a JSON list of tool definitions     it calls a tool, and every call fits a definition
    grounded    passages, gold and answer, in JSON  it answers out of its passages and cites them, or abstains where
                                                    they lack the answer (`posttrain.data.checks.sourced`)
    code        tests, in Python                    its program passes them, in a sandbox (`posttrain.data.checks.code`)
    sentiment   any text, which is not looked at    a rating: how glad its words are, in [−1, 1]

The part after the first ``|`` may be absent.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from posttrain.data.checks.calls import calls_as_wanted, calls_that_fit, parse_tools, parse_wanted
from posttrain.data.checks.code import parse_tests, passes_tests, require_sandbox
from posttrain.data.checks.constraints import parse_constraints, share_followed, share_followed_loosely
from posttrain.data.checks.documents import fields_found, fits_schema, json_object, parse_object, parse_schema
from posttrain.data.checks.numbers import number
from posttrain.data.checks.options import option_named, options_of
from posttrain.data.checks.refusals import abstain, answer, complied, refusal, refused
from posttrain.data.checks.sourced import keeps_to_sources, parse_sources, require_passages
from posttrain.data.checks.wording import choice, exact, token_f1
from posttrain.stage.errors import PosttrainError, UsageError, did_you_mean

Scorer = Callable[[str, str], float]


class ScoringFunction(Protocol):
    """A user's function of prompt (messages), answer and reference, ready to be called."""

    def __call__(
        self, messages: list[dict[str, str]], answer: str, reference: str | None, reasoning: str = ""
    ) -> float:
        """Return the function's number."""
        ...


WORD_PENALTY = 0.04
"""Preference lost per word beyond the ideal response."""
MOST_VERBOSITY_PENALTY = 0.4
STYLE_PENALTY = 0.1
"""Preference lost by a response that exclaims where the ideal one does not."""


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
    "f1": token_f1,
    "number": number,
    "json": json_object,
    "json_fields": fields_found,
    "json_schema": fits_schema,
    "choice": choice,
    "choice_logprob": option_named,
    "choice_logprob_per_byte": option_named,
    "answer": answer,
    "compliance": answer,
    "abstain": abstain,
    "refusal": refusal,
    "refused": refused,
    "complied": complied,
    "constraints": share_followed,
    "constraints_loose": share_followed_loosely,
    "call": calls_as_wanted,
    "valid_call": calls_that_fit,
    "grounded": keeps_to_sources,
    "code": passes_tests,
    "sentiment": sentiment,
}
_REFERENCES: dict[str, Callable[[str], object]] = {
    "constraints": parse_constraints,
    "constraints_loose": parse_constraints,
    "choice_logprob": options_of,
    "choice_logprob_per_byte": options_of,
    "call": parse_wanted,
    "valid_call": parse_tools,
    "grounded": parse_sources,
    "code": parse_tests,
    "json_fields": parse_object,
    "json_schema": parse_schema,
}
"""What reads a reference that must be more than any text."""
RATINGS = frozenset({"sentiment"})
"""Scorers that rate the response alone: they need no reference, and their values are no shares of right answers."""


def score(name: str, response: str, reference: str) -> float:
    """Return how right a response is, in [0, 1], or its rating, by the scorer of that name.

    Raises UsageError as `require_scorer` does.
    """
    require_scorer(name)
    return SCORERS[name](response, reference)


def require_scorer(name: str) -> None:
    """Raise UsageError when there is no scorer of that name, or what it needs is not at hand."""
    if name not in SCORERS:
        raise UsageError(f"scorer {name!r}: unknown; use one of {', '.join(SCORERS)}{did_you_mean(name, SCORERS)}")
    if name == "sentiment":
        _vader()
    if name == "code":
        require_sandbox()


def check_reference(name: str, reference: str) -> None:
    """Raise UsageError where a scorer cannot judge by that reference; most take any text.

    What a later stage fills in may be absent: see `require_whole_reference`.
    """
    parse = _REFERENCES.get(name)
    if parse is not None:
        parse(reference)


def require_whole_reference(name: str, reference: str) -> None:
    """Raise UsageError where a scorer cannot judge a response now by that reference."""
    check_reference(name, reference)
    if name == "grounded":
        require_passages(reference)


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


def user_function(path: str, where: str) -> Any:
    """Return what ``package.module:function`` names; ``where`` is the knob that does. Raises UsageError without one."""
    module, _, name = path.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{where}: {path!r}: {error}; give package.module:function") from None


def scoring_function(path: str, where: str) -> ScoringFunction:
    """Return a user's function, ``package.module:function``; ``where`` is the knob that names it.

    It is given prompt, answer and reference, and the reasoning before the answer where it has a parameter of that name.
    Raises UsageError when there is none, and the function itself PosttrainError when it does not return a number.
    """
    function = user_function(path, where)
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
