"""Numbers as people of several languages, and LaTeX, write them; and what looks like them and is another number."""

from __future__ import annotations

from fractions import Fraction

import pytest

from posttrain.data.checks.numbers import last_number, number, written

# What is written, and the number that it is.
FORMS = [
    ("12", "12"),
    ("012", "12"),
    ("The answer is 12.", "12"),
    ("-12", "-12"),
    ("−12", "-12"),
    ("–12", "-12"),
    ("+12", "12"),
    (".25", "0.25"),
    ("-.25", "-0.25"),
    ("0,25", "0.25"),
    ("0.125", "0.125"),
    ("1.234", "1.234"),
    ("1,234", "1234"),
    ("1.234", "1234"),
    ("1,234.5", "1234.5"),
    ("1.234,5", "1234.5"),
    ("1 234,5", "1234.5"),
    ("1\u00a0234,5", "1234.5"),
    ("1\u2009234", "1234"),
    ("1\u202f234\u202f567", "1234567"),
    ("1'234.50", "1234.5"),
    ("1’234’567", "1234567"),
    ("12,34,567", "1234567"),
    ("3,45,678.5", "345678.5"),
    ("1_234_567", "1234567"),
    (r"1{,}234", "1234"),
    (r"1\,234\,567", "1234567"),
    (r"1,\!234", "1234"),
    ("3{,}5", "3.5"),
    ("١٢٣", "123"),
    ("١٬٢٣٤٫٥", "1234.5"),
    ("১২৩৪", "1234"),
    ("१२.५", "12.5"),
    ("１２３４", "1234"),
    ("１，２３４", "1234"),
    ("3/4", "0.75"),
    ("3 / 4", "0.75"),
    ("-3/4", "-0.75"),
    ("1 3/4", "1.75"),
    ("½", "0.5"),
    ("2½", "2.5"),
    ("2 ⅓", "7/3"),
    (r"\frac{3}{4}", "3/4"),
    (r"-\frac{3}{4}", "-0.75"),
    (r"\dfrac34", "0.75"),
    (r"2\tfrac{1}{2}", "2.5"),
    (r"\boxed{\frac{1}{3}}", "1/3"),
    (r"so \boxed{42}, as step 3 said", "42"),
    ("2e4", "20000"),
    ("1.5E-3", "0.0015"),
    ("2 × 10^4", "20000"),
    ("2·10⁴", "20000"),
    ("2x10^4", "20000"),
    (r"2 \times 10^{4}", "20000"),
    ("5 × 10⁻²", "0.05"),
    ("10^3", "1000"),
    ("50%", "50"),
    ("50 %", "0.5"),
    (r"12.5\%", "0.125"),
    ("$1,234.50", "1234.5"),
    ("#### 1,234", "1234"),
    ("Fr. 1'234.–", "1234"),
]
OTHERS = [
    ("0.125", "125"),
    ("0,125", "125"),
    ("3/4", "4"),
    ("3/4", "3"),
    ("1 3/4", "0.75"),
    (r"\frac{3}{4}", "4"),
    ("3/4/2024", "0.75"),
    ("9-5", "-5"),
    ("2 × 10^4", "4"),
    ("2·10⁴", "10"),
    (r"\boxed{42} in step 3", "3"),
    ("有12，345", "12345"),
    ("1/0", "1"),
    ("012,345", "12345"),
    ("1/3", "0.33"),
    ("-1", "1"),
    ("50%", "5"),
    ("9" * 2000, "9"),
]


def test_there_are_sixty_forms() -> None:
    assert len(FORMS) >= 60


@pytest.mark.parametrize(("text", "value"), FORMS)
def test_a_written_number_is_its_value(text: str, value: str) -> None:
    assert Fraction(value) in last_number(text)
    assert number(f"Sure! I would say: {text}", value) == number(value, text) == 1.0


@pytest.mark.parametrize(("text", "value"), OTHERS)
def test_what_looks_like_a_number_is_not_another_one(text: str, value: str) -> None:
    assert number(text, value) == number(value, text) == 0.0


@pytest.mark.parametrize("text", ["0.125", "-1234.5", "1/3", "0", "20000", "-0.05", "-7/3"])
def test_values_are_written_as_they_are_read(text: str) -> None:
    assert written(Fraction(text)) == text
