"""Instructions whose keeping a program can verify: lengths, keywords, case, format, language.

Their names, arguments and meaning are those of IFEval (Zhou et al. 2023, "Instruction-following evaluation for large
language models", table 1), so that its files can be used as they are, and a few more of the same manner. They are given
as JSON, one object per instruction:

    [{"instruction": "length_constraints:number_words", "relation": "at least", "num_words": 300},
     {"instruction": "punctuation:no_comma"}]
"""

from __future__ import annotations

import functools
import inspect
import json
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from posttrain.stage.errors import UsageError, did_you_mean

Check = Callable[..., bool]

RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "at least": operator.ge,
    "at most": operator.le,
    "less than": operator.lt,
    "more than": operator.gt,
    "exactly": operator.eq,
}
_ABBREVIATIONS = r"(?:Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|e\.g|i\.e|cf|Inc|Ltd|Co|No|approx|M|Mme|Ud|Uds|[A-Z])"
_SENTENCE_END = re.compile(rf"(?:(?<!\w)(?P<short>{_ABBREVIATIONS}\.)|(?:[.!?…]+[\"”»')\]*]*(?=\s|$)|[。！？]+))")
_FENCE = re.compile(r"\A```(?:json)?(.*?)(?:```)?\Z", re.DOTALL | re.IGNORECASE)


def share_followed(response: str, reference: str) -> float:
    """Return the share of the instructions in ``reference`` that a response keeps, in [0, 1].

    An empty response keeps none. Raises UsageError as `parse_constraints` does.
    """
    verdicts = followed(response, reference)
    return sum(verdicts) / len(verdicts)


def share_followed_loosely(response: str, reference: str) -> float:
    """Return the share of the instructions that a response keeps, or would without its frame or its emphasis.

    The loose criterion of IFEval (section 2.2): without the first line, the last line, or both, and each of them, and
    the whole, also without asterisks; an instruction is kept where one of these eight keeps it.
    """
    verdicts = [any(kept) for kept in zip(*(followed(text, reference) for text in _looser(response)), strict=True)]
    return sum(verdicts) / len(verdicts)


def _looser(response: str) -> list[str]:
    lines = response.split("\n")
    parts = (lines, lines[1:], lines[:-1], lines[1:-1])
    texts = ["\n".join(part).strip() for part in parts]
    return [response, *texts[1:], *(text.replace("*", "") for text in texts)]


def followed(response: str, reference: str) -> list[bool]:
    """Return which of the instructions in ``reference`` a response keeps."""
    return [bool(response.strip()) and check(response) for check in parse_constraints(reference)]


@functools.lru_cache(maxsize=4096)
def parse_constraints(reference: str) -> tuple[Callable[[str], bool], ...]:
    """Return the checks that a JSON list of instructions asks for.

    Raises UsageError for text that is no such list, an unknown instruction, or arguments that do not fit it.
    """
    try:
        listed = json.loads(reference)
    except ValueError as error:
        raise UsageError(f"constraints {_short(reference)}: not JSON ({error}); give a list of objects") from None
    if not isinstance(listed, list) or not listed or not all(isinstance(item, dict) for item in listed):
        raise UsageError(f"constraints {_short(reference)}: not a list of objects; give at least one instruction")
    return tuple(_parse(item) for item in listed)


def _parse(item: dict[str, Any]) -> Callable[[str], bool]:
    arguments = {key: value for key, value in item.items() if key != "instruction" and value is not None}
    name = str(item.get("instruction"))
    if name not in INSTRUCTIONS:
        raise UsageError(f"constraints: instruction {name!r}: unknown{did_you_mean(name, INSTRUCTIONS)}")
    check = INSTRUCTIONS[name]
    try:
        inspect.signature(check).bind("", **arguments)
    except TypeError as error:
        wanted = ", ".join(list(inspect.signature(check).parameters)[1:]) or "none"
        raise UsageError(f"constraints: instruction {name!r}: {error}; its arguments are: {wanted}") from None
    for key, value in arguments.items():
        _check_argument(name, key, value)
    return functools.partial(check, **arguments)


def _check_argument(name: str, key: str, value: Any) -> None:
    """Raise UsageError where an argument, which its name gives a type, has another one."""
    if key.endswith("relation"):
        right, wanted = value in RELATIONS, f"one of {', '.join(RELATIONS)}"
    elif key in ("keywords", "forbidden_words"):
        right, wanted = isinstance(value, list) and all(isinstance(word, str) for word in value), "a list of words"
    elif "num" in key or key.endswith("frequency") or key == "nth_paragraph":
        right, wanted = isinstance(value, int) and not isinstance(value, bool) and value >= 0, "a number"
    else:
        right, wanted = isinstance(value, str) and bool(value.strip()), "a text"
    if not right:
        raise UsageError(f"constraints: instruction {name!r}: {key}={value!r} is not {wanted}")


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}…")


# Words


def _existence(response: str, keywords: Sequence[str]) -> bool:
    return all(keyword.lower() in response.lower() for keyword in keywords)


def _frequency(response: str, keyword: str, frequency: int, relation: str) -> bool:
    return RELATIONS[relation](response.lower().count(keyword.lower()), frequency)


def _forbidden_words(response: str, forbidden_words: Sequence[str]) -> bool:
    words = "|".join(map(re.escape, forbidden_words))
    return re.search(rf"\b(?:{words})\b", response, re.IGNORECASE) is None


def _letter_frequency(response: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return RELATIONS[let_relation](response.lower().count(letter.lower()), let_frequency)


# Lengths


def _number_words(response: str, num_words: int, relation: str) -> bool:
    return RELATIONS[relation](len(re.findall(r"\w+", response)), num_words)


def _number_sentences(response: str, num_sentences: int, relation: str) -> bool:
    return RELATIONS[relation](count_sentences(response), num_sentences)


def count_sentences(text: str) -> int:
    """Return the number of sentences: what ends in a full stop, but for common abbreviations and initials."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text) if match["short"] is None]
    return len(ends) + bool(text[ends[-1] if ends else 0 :].strip())


def _number_paragraphs(response: str, num_paragraphs: int) -> bool:
    """Paragraphs stand between lines of three asterisks, and none of them is empty."""
    return len(_between(response, "***") or []) == num_paragraphs


def _nth_paragraph_first_word(response: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs stand between empty lines here."""
    paragraphs = [part.strip() for part in response.split("\n\n") if part.strip()]
    if len(paragraphs) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    beginning = paragraphs[nth_paragraph - 1].lstrip("\"'“‘«*_#( ").lower()
    return re.match(rf"{re.escape(first_word.lower())}(?!\w)", beginning) is not None


# Content and format


def _number_placeholders(response: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\]\n]*\]", response)) >= num_placeholders


def _postscript(response: str, postscript_marker: str) -> bool:
    letters = re.sub(r"[\s.]", "", postscript_marker)
    if re.fullmatch(r"[Pp]+[Ss]", letters):
        pattern = r"(?<!\w)" + r"\.?\s?".join(letters[:-1]) + r"\.?\s?" + letters[-1] + r"(?!\w)"
    else:
        pattern = re.escape(postscript_marker)
    return re.search(pattern, response, re.IGNORECASE) is not None


def _no_digits(response: str) -> bool:
    return not any(character.isdigit() for character in response)


def _number_bullet_lists(response: str, num_bullets: int) -> bool:
    return len(re.findall(r"^\s*(?:\*[^*\n]|-).*$", response, re.MULTILINE)) == num_bullets


def _number_numbered_lists(response: str, num_items: int) -> bool:
    return len(re.findall(r"^\s*\d+[.)]\s", response, re.MULTILINE)) == num_items


def _constrained_response(response: str) -> bool:
    return any(f"My answer is {word}." in response for word in ("yes", "no", "maybe"))


def _number_highlighted_sections(response: str, num_highlights: int) -> bool:
    """Sections stand between single or double asterisks; what stands between double ones counts for one."""
    marked = re.findall(r"\*\*([^*\n]+)\*\*|\*([^*\n]+)\*", response)
    return sum(bool((double or single).strip()) for double, single in marked) >= num_highlights


def _multiple_sections(response: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s?\d+", response)) >= num_sections


def _json_format(response: str) -> bool:
    """The whole response is one JSON document, which may stand in a code fence."""
    text = response.strip()
    fenced = _FENCE.match(text)
    try:
        json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return True


def _title(response: str) -> bool:
    return any(title.strip("<> ") for title in re.findall(r"<<([^\n]+?)>>", response))


# Manner


def _quotation(response: str) -> bool:
    text = response.strip()
    return len(text) > 1 and text[0] == text[-1] == '"'


def _end_checker(response: str, end_phrase: str) -> bool:
    return response.strip().strip('"').lower().endswith(end_phrase.strip().lower())


def _start_checker(response: str, start_phrase: str) -> bool:
    return response.strip().strip('"').lower().startswith(start_phrase.strip().lower())


def _repeat_prompt(response: str, prompt_to_repeat: str) -> bool:
    return response.strip().lower().startswith(prompt_to_repeat.strip().lower())


def _two_responses(response: str) -> bool:
    """Two responses, which differ, stand on both sides of six asterisks."""
    parts = _between(response, "******") or []
    return len(parts) == 2 and parts[0] != parts[1]


def _between(text: str, divider: str) -> list[str] | None:
    """Return the texts between dividers, which may also stand first and last; None where one between is empty."""
    parts = [part.strip() for part in text.split(divider)]
    if not all(parts[1:-1]):
        return None
    return [part for part in parts if part]


def _no_comma(response: str) -> bool:
    return "," not in response


def _capital_word_frequency(response: str, capital_frequency: int, capital_relation: str) -> bool:
    capitals = [word for word in re.findall(r"\w+(?:[-./&]\w+)*", response) if word.isupper()]
    return RELATIONS[capital_relation](len(capitals), capital_frequency)


def _english_capital(response: str) -> bool:
    return response.isupper() and language_of(response.lower()) == "en"


def _english_lowercase(response: str) -> bool:
    return response.islower() and language_of(response) == "en"


def _response_language(response: str, language: str) -> bool:
    return language_of(response) == language.lower().split("-")[0]


def language_of(text: str) -> str:
    """Return the ISO 639-1 code of the language that a text is most likely in."""
    import py3langid  # reads its model when first asked, which takes seconds

    code: str = py3langid.classify(text)[0]
    return code


INSTRUCTIONS: dict[str, Check] = {
    "change_case:capital_word_frequency": _capital_word_frequency,
    "change_case:english_capital": _english_capital,
    "change_case:english_lowercase": _english_lowercase,
    "combination:repeat_prompt": _repeat_prompt,
    "combination:two_responses": _two_responses,
    "detectable_content:no_digits": _no_digits,
    "detectable_content:number_placeholders": _number_placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:constrained_response": _constrained_response,
    "detectable_format:json_format": _json_format,
    "detectable_format:multiple_sections": _multiple_sections,
    "detectable_format:number_bullet_lists": _number_bullet_lists,
    "detectable_format:number_highlighted_sections": _number_highlighted_sections,
    "detectable_format:number_numbered_lists": _number_numbered_lists,
    "detectable_format:title": _title,
    "keywords:existence": _existence,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:frequency": _frequency,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _response_language,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_words": _number_words,
    "punctuation:no_comma": _no_comma,
    "startend:end_checker": _end_checker,
    "startend:quotation": _quotation,
    "startend:start_checker": _start_checker,
}
