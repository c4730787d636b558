"""Knobs of the steps of curation."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from posttrain.stage.schema import schema

StepName = Literal["licence", "quality", "language", "pii", "contamination", "near_duplicate", "agreement", "mix"]
GroupColumn = Literal["source", "task", "language", "license"]
PiiType = Literal["email", "phone", "card", "iban", "ip", "key", "national_id"]


@schema
class NearDuplicateConfig:
    """Rows that say nearly the same: candidates by MinHash, verified by their true similarity."""

    threshold: float = Field(default=0.8, gt=0, le=1)
    """Jaccard similarity of runs of words from which on two rows are near duplicates."""
    shingle_words: int = Field(default=5, ge=1, le=20)
    """Words of a run; in scripts without spaces, characters."""
    part_overlap: float = Field(default=0.6, ge=0, le=1)
    """Share of words that the prompts, and each of the answers, must have in common besides: rows of one template with
    answers of their own are no duplicates."""
    spare_other_numbers: bool = True
    """Rows whose numbers differ are no near duplicates."""


@schema
class ContaminationConfig:
    """Rows to train on that say what an evaluation item asks or answers."""

    gram_words: int = Field(default=5, ge=3, le=13)
    """Words of a run by which long items are found."""
    coverage: float = Field(default=0.8, gt=0, le=1)
    """Share of an item's words that such runs must cover, those left out that several items share or that it quotes."""
    long_words: int = Field(default=13, ge=5)
    """Items with fewer words are found word by word: the whole of it anywhere in a row."""
    least_words: int = Field(default=5, ge=2)
    """Items with fewer words are found only where a turn says nothing else."""
    min_recall: float = Field(default=0.99, ge=0, le=1)
    """Share of items, planted into rows, that must be found again; less ends curation."""


@schema
class PiiConfig:
    """Personal data and secrets with a form of their own; names and addresses have none and stay."""

    types: list[PiiType] = Field(default_factory=lambda: list(get_args(PiiType)), min_length=1)
    """What to look for."""
    on_found: Literal["replace", "drop"] = "replace"
    """``replace`` writes ``[EMAIL_1]`` and the like, the same for the same thing in all of a row."""


@schema
class QualityConfig:
    """Rules on form, each with the value from which on a row drops."""

    control_tokens: bool = True
    """Drop rows whose text holds a control token of a chat template, such as ``<|im_end|>``."""
    role_order: bool = True
    """Drop conversations whose turns do not follow one another: two by the user, a result without a call."""
    refusals: Literal["drop", "note", "keep"] = "note"
    """What to do with demonstrations whose answer is nothing but a stock refusal."""
    max_repeated: float = Field(default=0.5, gt=0, le=1)
    """Share of an answer's lines, or of its characters in repeated runs of words, that may be repetition."""
    min_letters: float = Field(default=0.2, ge=0, le=1)
    """Share of letters among the characters of a running text of 50 words or more."""
    max_symbols: float = Field(default=0.1, gt=0)
    """Hashes and ellipses for each word of a running text."""
    max_garbled: float = Field(default=0.01, ge=0, le=1)
    """Share of characters that stand for a broken encoding."""


@schema
class LanguageConfig:
    """Identification of languages, offline; texts too short to tell are left alone."""

    keep: list[str] = Field(default_factory=list)
    """Languages of rows that stay, such as ``[en, fi]``; an empty list keeps all."""
    least_letters: int = Field(default=40, ge=1)
    """Letters below which nothing is said of a text."""
    least_probability: float = Field(default=0.9, gt=0, le=1)
    """Probability below which nothing is said of a text."""
    on_mismatch: Literal["drop", "note"] = "note"
    """What to do with rows that answer in another language than they are asked in, without being asked to."""


@schema
class LicenceConfig:
    """What the licences of sources and rows must allow."""

    use: Literal["research", "commercial", "redistribution"] | None = None
    """What the dataset is made for; None asks for nothing, and the step does nothing."""
    allow: dict[str, list[str]] = Field(default_factory=dict)
    """SPDX id → the uses that it allows."""
    on_forbidden: Literal["error", "drop"] = "error"
    """What to do with rows of an unknown licence, or of one that does not allow the use."""


@schema
class AgreementConfig:
    """Comparisons whose annotators disagree."""

    least: float = Field(default=0.5, ge=0, le=1)
    """Agreement below which all rows of a prompt drop, over the pairs of responses that several annotators judged: 1
    for the same judgement, half for a tie and a preference, 0 for opposite ones."""


@schema
class MixConfig:
    """Proportions of the rows to train on."""

    by: list[GroupColumn] = Field(default_factory=lambda: list[GroupColumn](["source"]), min_length=1)
    """What makes a group; the name of one of several is ``task/language``."""
    shares: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Group → its part of all, such as ``{maths: 1, chat: 3}``; none are as `temperature` says."""
    temperature: float = Field(default=1.0, ge=1)
    """1 leaves the groups as they are; more evens them out, to equal parts at the end."""
    rows: int | None = Field(default=None, ge=1)
    """Rows in all; None takes as many as the scarcest group allows. No row is repeated."""
    seed: int = 0
    """Of which rows stay."""

    @model_validator(mode="after")
    def _something_stays(self) -> MixConfig:
        if self.shares and not sum(self.shares.values()):
            raise ValueError("shares are all 0; give a group more")
        return self


@schema
class StepsConfig:
    """The steps between reading and writing, and their knobs."""

    order: list[StepName] = Field(default_factory=list)
    """Which steps, and in which order."""
    licence: LicenceConfig = Field(default_factory=LicenceConfig)
    """Licences and terms."""
    quality: QualityConfig = Field(default_factory=QualityConfig)
    """Rules on form."""
    language: LanguageConfig = Field(default_factory=LanguageConfig)
    """Languages."""
    pii: PiiConfig = Field(default_factory=PiiConfig)
    """Personal data and secrets."""
    contamination: ContaminationConfig = Field(default_factory=ContaminationConfig)
    """Evaluation items."""
    near_duplicate: NearDuplicateConfig = Field(default_factory=NearDuplicateConfig)
    """Near duplicates."""
    agreement: AgreementConfig = Field(default_factory=AgreementConfig)
    """Annotators."""
    mix: MixConfig = Field(default_factory=MixConfig)
    """Proportions."""

    @model_validator(mode="after")
    def _each_once(self) -> StepsConfig:
        twice = sorted({name for name in self.order if self.order.count(name) > 1})
        if twice:
            raise ValueError(f"step {twice[0]!r} stands twice in order; name each once")
        return self
