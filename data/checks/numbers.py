"""Numbers in a text, as people of several languages and LaTeX write them: which values may the last one have?

    1,234.5   1.234,5   1 234,5   1’234.5   12,34,567   1_234   1{,}234   1\\,234   ١٬٢٣٤   １２３４   thousands
    3/4   1 3/4   ½   2½   \\frac{3}{4}                                                           fractions
    2e4   2 × 10^4   2·10⁴   2 \\times 10^{4}   10^4                                              powers of ten
    12.5%   -5   −5   .25   \\boxed{12}                                                           the rest

A text that may be read in two ways has two values: ``1.234`` is 1234 or a fraction, ``50%`` is 50 or a half. What
cannot be, is not: no thousands begin with a zero, so ``0.125`` is an eighth alone.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

_LATEX_FRACTION = re.compile(r"(\d)?\\[dt]?frac\s*(?:\{\s*([-−]?\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))")
_BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_POWER = re.compile(
    r"(?:(?<=\d)\s*(?:[×·x*]|\\times|\\cdot)\s*|(?<![\w.,]))10\s*(?:\^\s*\{?\s*([-−+]?\d{1,3})\s*\}?|([⁻⁺]?[⁰¹²³⁴-⁹]{1,3}))"
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_MARKS = str.maketrans({"٫": ".", "．": ".", "−": "-", "﹣": "-", "－": "-", "％": "%", "٪": "%", "⁄": "/"})

_MARKED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:(['’٬_\u00a0\u2009\u202f]|\\,)\d{3})(?:\1\d{3})*(?!\d)")
"""Thousands apart by what is never between two numbers: an apostrophe, or a space at which no line breaks."""
_WIDE_MARK = re.compile(r"(?<=[０-９])，(?=[０-９]{3})")
"""A comma between wide digits; elsewhere it parts clauses."""
_PLAIN = r"\d+(?:[.,]\d+)*"
_NUMBER = re.compile(
    rf"(?:(?<![\d.,])(?:(?<!\w)[-–])?{_PLAIN}|(?<![\w.,])[-–]?\.\d+)"
    r"(?:[eE][-+]?\d{1,3}(?!\w))?"  # more digits than a number can have are no exponent
)
_RATIO = re.compile(
    r"(?<![\d/.,])(?P<sign>(?<!\w)[-–])?(?:(?P<whole>\d{1,99})\s+)?(?P<over>\d{1,99})\s?/\s?(?P<under>\d{1,99})(?![\d/])"
)
_GROUPED = re.compile(r"[1-9]\d{0,2}(?:([.,])\d{3})(?:\1\d{3})*|[1-9]\d?(?:,\d{2})+,\d{3}")
_SPACED = re.compile(r"(?<![\w.,])[-–]?[1-9]\d{0,2}(?: \d{3})+(?:[.,]\d+)?\Z")
_LONGEST = 1000
"""Characters of a number."""
_PERCENT = re.compile(r"\s?\\?%")


def number(response: str, reference: str) -> float:
    """Return 1 when the last numbers of both texts are equal.

    ``1,234`` and ``1.234`` may each be read as 1234 or as a fraction, ``1 234`` as 1234 or as two numbers; two numbers
    are equal when some reading is.
    """
    return float(bool(last_number(response) & last_number(reference)))


def last_number(text: str) -> set[Fraction]:
    """Return the values that the last number of a text may have, of what is boxed where something is; else none."""
    for boxed in reversed(_BOXED.findall(text)):
        if found := _last(boxed):
            return found
    return _last(text)


def _last(text: str) -> set[Fraction]:
    text = plain_numbers(text)
    found = list(_NUMBER.finditer(text))
    if not found:
        return set()
    # A ratio is short: what stands far before the last number is no part of it.
    end, near = found[-1].end(), max(0, found[-1].start() - 80)
    ratio = next((one for one in _RATIO.finditer(text, near) if one.end() == end), None)
    values = _values_of_ratio(ratio) if ratio is not None and int(ratio["under"]) else _readings(found[-1][0])
    # Twenty groups are more than any number has, and keep the search short in a long row of numbers.
    if ratio is None and (spaced := _SPACED.search(text, near, end)):
        values |= _readings(spaced[0].replace(" ", ""))
    return values | {value / 100 for value in values if _PERCENT.match(text, end)}


def plain_numbers(text: str) -> str:
    """Return a text with fractions, powers of ten and marked thousands written as ``3/4``, ``2e4`` and ``1234``."""
    text = text.replace(",\\!", "").replace("{,}", ",")
    text = _LATEX_FRACTION.sub(_ratio, text)
    text = _POWER.sub(_power, text)
    if not text.isascii():
        text = "".join(map(_ascii_digit, _WIDE_MARK.sub(",", text)))
    return _MARKED.sub(lambda found: re.sub(r"\D", "", found[0]), text.translate(_MARKS))


def _ratio(found: re.Match[str]) -> str:
    whole = f"{found[1]} " if found[1] else ""
    return f"{whole}{found[2] or found[3]}/{found[4] or found[5]} "


def _power(found: re.Match[str]) -> str:
    exponent = (found[1] or found[2]).translate(_SUPERSCRIPTS).replace("−", "-")
    return f"e{exponent}" if found.start() and found.string[found.start() - 1].isdigit() else f"1e{exponent}"


def _ascii_digit(character: str) -> str:
    if character.isdecimal():
        return str(unicodedata.digit(character))
    fraction = unicodedata.decomposition(character).startswith("<fraction>")
    return f" {unicodedata.normalize('NFKC', character)}" if fraction else character


def _values_of_ratio(found: re.Match[str]) -> set[Fraction]:
    value = Fraction(int(found["over"]), int(found["under"])) + int(found["whole"] or 0)
    return {-value if found["sign"] else value}


def _readings(number: str) -> set[Fraction]:
    """Return the values of what `_NUMBER` found; a row of digits that is longer than any number has none."""
    if len(number) > _LONGEST:
        return set()
    sign = "-" if number[0] in "-–" else ""
    digits, _, power = number.lstrip("-–").lower().partition("e")
    marks = [mark for mark in digits if mark in ".,"]
    found = set()
    if marks and marks.count(marks[-1]) == 1:
        whole, _, fraction = digits.rpartition(marks[-1])
        if not whole or whole.isdecimal() or _GROUPED.fullmatch(whole):
            found.add(f"{re.sub('[.,]', '', whole) or 0}.{fraction}")
    if digits.isdecimal() or _GROUPED.fullmatch(digits):
        found.add(re.sub("[.,]", "", digits))
    return {Fraction(f"{sign}{text}e{power or 0}") for text in found}


def written(value: Fraction) -> str:
    """Return a value as digits where they end, and as a ratio otherwise: ``0.125``, ``1/3``."""
    twos_and_fives, places = value.denominator, 0
    for prime in (2, 5):
        power = 0
        while twos_and_fives % prime == 0:
            twos_and_fives, power = twos_and_fives // prime, power + 1
        places = max(places, power)
    if twos_and_fives != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    whole, fraction = digits[: len(digits) - places], digits[len(digits) - places :]
    return f"{'-' * (value < 0)}{whole}{'.' * bool(fraction)}{fraction}"
