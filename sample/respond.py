"""Answer one prompt, a file of prompts, or a person at the terminal; `posttrain generate` starts this.

python -m posttrain.sample.respond --model DIR --sampling '{"temperature": 0.5}' --asking '{"prompt": "Who are you?"}'
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data.chat.pieces import encode_prompts
from posttrain.data.chat.tokenizer import load_tokenizer, tokenizer_digest
from posttrain.data.messages import Conversation, Json
from posttrain.models.load import load_policy, load_reward_model
from posttrain.sample.asking.citing import asked_of, cite, read_passages, withhold
from posttrain.sample.asking.rows import Row, answer_rows, prompt_row, read_rows
from posttrain.sample.asking.rungs import climb_rows, rungs_of, tasks_of
from posttrain.sample.asking.talk import alternatives, chat, citations, outcome, readable, with_system
from posttrain.sample.asking.ways import (
    Given,
    Judge,
    Way,
    best_sample,
    every_sample,
    first_valid_sample,
    judge_of,
    plain,
    verified,
    voted_sample,
)
from posttrain.sample.backends.cached import CachedSampler, engine
from posttrain.sample.backends.credentials import credentials
from posttrain.sample.backends.guided import Guided
from posttrain.sample.backends.response_cache import ResponseCache
from posttrain.sample.backends.server import ServerSampler, spoken_at
from posttrain.sample.choose.select import by_logprob
from posttrain.sample.config.asking import Asking, check_asking, served_name
from posttrain.sample.config.sampling import SamplingConfig, sampling_params
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import Generates, Sample, SamplingParams
from posttrain.sample.score import by_reward
from posttrain.sample.structured.closing import Vocabulary
from posttrain.sample.structured.json_schema import Validator
from posttrain.sample.structured.ladder import RungReport, ladder_table, read_document, schema_prompt
from posttrain.sample.structured.named import Constrained, constraint_of, read_constraint, read_schema
from posttrain.stage.artifact import MANIFEST, read_manifest
from posttrain.stage.errors import PosttrainError, UsageError
from posttrain.stage.files import contents_digest, sha256_file, sha256_text, write_text_atomic
from posttrain.stage.schema import build
from posttrain.stage.whole import require_whole

PART_BATCHES = 4
"""Batches of a file that are sampled together; their responses are on the disk before the next ones begin."""
_NO_MATTER = {"file", "out", "batch", "cache", "cache_mb"}
"""What of the asking changes no response."""


@dataclasses.dataclass(frozen=True)
class _Work:
    """What was read and checked before anything was loaded."""

    rows: list[Row]
    passages: dict[str, list[str]]
    """Of rows that are to cite them, by their places."""
    constraint: str | Mapping[str, Any] | None
    """What a grammar is made of."""
    schema: Mapping[str, Any] | None
    """What a sample is checked against, where no grammar holds it to that."""
    judge: Judge | None


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument(
        "--model", type=Path, required=True, help="directory of a committed model artifact, or of a Hugging Face model"
    )
    parser.add_argument("--sampling", type=json.loads, default={}, help="knobs of sampling as JSON")
    parser.add_argument("--asking", type=json.loads, default={}, help="fields of Asking as JSON")
    options = parser.parse_args()
    try:
        _run(options.model, build(SamplingConfig, options.sampling, "sampling"), Asking(**options.asking))
    except PosttrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print()
    return 0


def _run(directory: Path, sampling: SamplingConfig, asking: Asking) -> None:
    check_asking(asking, sampling)
    params = sampling_params(sampling, seed=0)
    source: Generates
    is_artifact = (directory / MANIFEST).is_file()
    digests = [_require_kind(directory, "model") if is_artifact else contents_digest(directory, sha256_file)]
    if asking.reward is not None:
        digests.append(_require_kind(Path(asking.reward), "reward_model"))
    work = _read_work(asking)
    if is_artifact:
        require_whole(directory)
    tokenizer = load_tokenizer(directory, pads=is_artifact)
    if asking.server is not None:
        source = _served(asking, work, tokenizer, directory)
        _answer(asking, work, _way(asking, work, source, params, tokenizer), tokenizer, params, digests)
        return
    sampler = Sampler(_placed(load_policy(directory, asking.dtype)), tokenizer, max_batch_size=asking.batch)
    if asking.talking:
        chat(sampler, params, asking.system)
        return
    if asking.ladder:
        assert isinstance(work.constraint, Mapping)
        vocabulary = Vocabulary.of(tokenizer, sampler.ends)
        _show_ladder(
            asking, work.rows, climb_rows(sampler, work.rows, work.constraint, asking.system, params, vocabulary)
        )
        return
    with contextlib.ExitStack() as stack:
        source = sampler
        if asking.constraint is not None and work.constraint is not None:
            vocabulary = Vocabulary.of(tokenizer, sampler.ends)
            source = Constrained(sampler, constraint_of(vocabulary, asking.constraint[0], work.constraint))
        if asking.cache is not None:
            cache = stack.enter_context(ResponseCache(Path(asking.cache), asking.cache_mb << 20))
            source = CachedSampler(sampler, cache, f"{digests[0]} {asking.dtype}")
        way = _way(asking, work, source, params, tokenizer)
        _answer(asking, work, way, tokenizer, params, digests)


def _served(asking: Asking, work: _Work, tokenizer: PreTrainedTokenizerBase, directory: Path) -> Generates:
    """Return what samples through a server, held to what responses must be."""
    assert asking.server is not None
    dialect = asking.dialect or spoken_at(asking.server, credentials())
    name = asking.served_name or served_name(directory, dialect)
    server = ServerSampler(asking.server, name, tokenizer, dialect, max_concurrent=asking.batch, headers=credentials())
    if asking.constraint is None or work.constraint is None:
        return server
    return Guided(server, (asking.constraint[0], work.constraint))


def _placed(model: PreTrainedModel) -> PreTrainedModel:
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _require_kind(directory: Path, kind: str) -> str:
    """Return the digest of an artifact. Raises UsageError where it is of another kind."""
    manifest = read_manifest(directory)
    if manifest.kind != kind:
        raise UsageError(f"{directory.name}: a {manifest.kind} artifact; give a {kind}")
    return manifest.digest


def _read_work(asking: Asking) -> _Work:
    """Return what files say. Raises UsageError where they do not say it, or not what a judge needs."""
    rows: list[Row] = []
    if asking.prompt is not None:
        rows = [prompt_row(asking.prompt, asking.reference)]
    elif asking.file is not None:
        rows = read_rows(Path(asking.file))
    kind, value = asking.constraint or ("", "")
    checked = asking.first_valid is not None and kind == "schema"
    constraint = read_constraint(kind, value) if kind and not checked else None
    if asking.ladder and isinstance(constraint, Mapping):
        tasks_of(rows, constraint, asking.system)
    passages = read_passages(asking.cite, rows) if asking.cite is not None else [[] for _ in rows]
    judged = asking.scorer is not None and asking.by != "vote"
    return _Work(
        rows=rows,
        passages={row.place: own for row, own in zip(rows, passages, strict=True)},
        constraint=constraint,
        schema=read_schema(value) if checked else None,
        judge=judge_of(asking.scorer or "", rows) if judged else None,
    )


def _way(
    asking: Asking, work: _Work, source: Generates, params: SamplingParams, tokenizer: PreTrainedTokenizerBase
) -> Way:
    if asking.first_valid is not None:
        return first_valid_sample(source, params, _Valid(asking, work), asking.first_valid)
    if asking.best_of is None:
        return every_sample(source, params)
    several = dataclasses.replace(params, num_samples=asking.best_of)
    if asking.by == "vote":
        return voted_sample(source, several, asking.scorer)
    if asking.by == "verifier" and work.judge is not None:
        return best_sample(source, several, "verifier", verified(work.judge))
    if asking.by == "reward" and asking.reward is not None:
        folder = Path(asking.reward)
        if tokenizer_digest(tokenizer) != tokenizer_digest(load_tokenizer(folder)):
            raise UsageError(f"--reward {folder.name}: its tokenizer is not the model's; train both from one base")
        require_whole(folder)
        reward = by_reward(_placed(load_reward_model(folder, asking.dtype)), tokenizer.pad_token_id, asking.batch)
        return best_sample(source, several, "reward", lambda rows: reward)
    return best_sample(source, several, "logprob", lambda rows: by_logprob)


class _Valid:
    """Whether a sample is what was asked for: a document of the schema, of enough score, cited."""

    def __init__(self, asking: Asking, work: _Work) -> None:
        self.least, self.work, self.cites = asking.least, work, asking.cite is not None
        self.validator = Validator(work.schema) if work.schema is not None else None

    def __call__(self, row: Row, sample: Sample) -> bool:
        if self.validator is not None and not read_document(sample.text, self.validator).valid:
            return False
        if self.work.judge is not None and not self.work.judge(row, sample) >= self.least:
            return False
        return not self.cites or cite(sample, self.work.passages[row.place], self.least).holds


def _conversation(asking: Asking, work: _Work, row: Row) -> Conversation:
    """Return what the model is asked: a row's conversation behind what it is told of system, passages and schema."""
    told = dataclasses.replace(row, conversation=with_system(row.conversation, asking.system).messages)
    if asking.cite is not None:
        told = asked_of(told, work.passages[row.place])
    conversation = Conversation(told.conversation)
    return conversation if work.schema is None else schema_prompt(conversation, work.schema, ())


def _answer(
    asking: Asking,
    work: _Work,
    way: Way,
    tokenizer: PreTrainedTokenizerBase,
    params: SamplingParams,
    digests: Sequence[str],
) -> None:
    ids = encode_prompts(tokenizer, [_conversation(asking, work, row) for row in work.rows])

    def give(places: Sequence[int]) -> list[Given]:
        return way([work.rows[place] for place in places], [ids[place] for place in places])

    if asking.out is None:
        (given,) = give([0])
        for sample in given.samples:
            print(readable(sample) if asking.cite is None else _cited(asking, work, sample))
            if sample.top_tokens:
                print(alternatives(sample, tokenizer))
        if line := outcome(given.told):
            print(line)
        return

    def answers(places: Sequence[int]) -> list[Json]:
        given = zip(places, give(places), strict=True)
        return [_fields(asking, work, work.rows[place], own, tokenizer) for place, own in given]

    own = {name: value for name, value in dataclasses.asdict(asking).items() if name not in _NO_MATTER}
    fields = [(row.place.rpartition(":")[2], row.fields) for row in work.rows]
    request = sha256_text(repr([digests, engine(), params, own, work.constraint, work.schema, work.passages, fields]))
    chunk = max(1, PART_BATCHES * asking.batch // (asking.best_of or params.num_samples))
    written = answer_rows(answers, work.rows, Path(asking.out), request, chunk)
    print(f"{len(written)} prompts answered in {asking.out}{_without(written)}")


def _cited(asking: Asking, work: _Work, sample: Sample) -> str:
    return citations(sample, cite(sample, work.passages["--prompt"], asking.least))


def _fields(asking: Asking, work: _Work, row: Row, given: Given, tokenizer: PreTrainedTokenizerBase) -> Json:
    """Return what a row of a file gets besides what it has."""
    responses = [plain(sample, tokenizer) for sample in given.samples]
    if asking.cite is not None:
        found = [cite(sample, work.passages[row.place], asking.least) for sample in given.samples]
        responses = [withhold(response, own) for response, own in zip(responses, found, strict=True)]
    return {"responses": responses, **given.told}


def _without(rows: Sequence[Json]) -> str:
    """Return how many rows got no response that was valid, or had one withheld."""
    invalid = sum(not row["responses"] for row in rows)
    withheld = sum("withheld" in response for row in rows for response in row["responses"])
    notes = [f"{invalid} without a valid response"] * bool(invalid)
    notes += [f"{withheld} responses withheld that the passages do not support"] * bool(withheld)
    return "".join(f"; {note}" for note in notes)


def _show_ladder(asking: Asking, rows: Sequence[Row], reports: Sequence[RungReport]) -> None:
    """Print the figures of each rung, and what it gave for a single prompt; write what it gave for each of a file."""
    if asking.file is None:
        for rung in rungs_of(reports, 0):
            print(f"[{rung['rung']}] {'valid' if rung['valid'] else 'not valid'}\n{rung['text']}\n")
    print(ladder_table(reports))
    if asking.out is not None:
        lines = [row.fields | {"rungs": rungs_of(reports, place)} for place, row in enumerate(rows)]
        write_text_atomic(Path(asking.out), "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


if __name__ == "__main__":
    sys.exit(main())
