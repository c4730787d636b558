"""Answer one prompt, a file of prompts, or a person at the terminal; `posttrain generate` starts this.

python -m posttrain.sample.respond --model DIR --sampling '{"temperature": 0.5}' [--prompt TEXT | --file IN --out OUT]
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerBase

from posttrain.data.chat.pieces import encode_prompts
from posttrain.data.chat.reasoning import hidden_tokens
from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.data.messages import Conversation, Json, Message, message_dicts
from posttrain.models.load import load_policy
from posttrain.sample.backends.cached import CachedSampler
from posttrain.sample.backends.response_cache import ResponseCache
from posttrain.sample.choose.confidence import mean_logprob
from posttrain.sample.choose.select import derived_seed
from posttrain.sample.config.sampling import SamplingConfig, sampling_params
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import Generates, Sample, SamplingParams
from posttrain.sample.structured.closing import Vocabulary
from posttrain.sample.structured.named import Constrained, constraint_of, read_constraint
from posttrain.stage.artifact import read_manifest
from posttrain.stage.errors import PosttrainError, UsageError
from posttrain.stage.progress import track
from posttrain.stage.schema import build
from posttrain.stage.whole import require_whole

CHUNK = 256
"""Prompts of a file that are sampled together; their responses are on the disk before the next ones begin."""
RESET = "/reset"
_CUT = "the reasoning did not end; raise max_tokens"

Row = tuple[Json, list[Json]]
"""A row of a file as it is, and the conversation that its prompt means."""


def read_rows(source: Path) -> list[Row]:
    """Return the rows of a JSONL file with their conversations.

    A row's ``prompt`` is a text or a list of messages; what else it holds is kept. Lines end at a line feed alone,
    since a text may hold any other separator; blank ones are passed over, and so is a byte order mark. Raises
    UsageError that names the line of a row that cannot be read.
    """
    if not source.is_file():
        raise UsageError(f"{source}: no such file")
    lines = source.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    return [_row(line, f"{source}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _row(line: bytes, where: str) -> Row:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not UTF-8 ({error.reason} at byte {error.start + 1}); save it as UTF-8") from None
    except ValueError as error:
        raise UsageError(f"{where}: not JSON ({error}); give one object per line") from None
    if not isinstance(row, dict) or "prompt" not in row:
        raise UsageError(f'{where}: no prompt; give {{"prompt": TEXT or a list of messages}}')
    return row, _conversation(row["prompt"], where)


def respond_to_rows(
    sampler: Generates,
    tokenizer: PreTrainedTokenizerBase,
    params: SamplingParams,
    rows: Sequence[Row],
    out: Path,
    system: str = "",
) -> None:
    """Write each row with its ``responses`` as JSONL; ``out`` is there once all are."""
    ids = encode_prompts(tokenizer, [_with_system(conversation, system) for _, conversation in rows])
    temporary = out.with_name(f".{out.name}.incomplete")
    with temporary.open("w", encoding="utf-8") as file:
        chunks = [list(range(len(rows)))[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
        for places in track(chunks, len(rows), "generate"):
            samples = sampler.generate([ids[place] for place in places], params)
            for place, own in zip(places, samples, strict=True):
                row = rows[place][0] | {"responses": [_plain(sample) for sample in own]}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
    temporary.rename(out)


def _conversation(prompt: Any, where: str) -> list[Json]:
    if isinstance(prompt, str):
        return [{"role": "user", "content": prompt}]
    try:
        messages = TypeAdapter(list[Message]).validate_python(prompt)
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(str(part) for part in ("prompt", *fault["loc"]))
        raise UsageError(f"{where}: {place}: {fault['msg']}; give a text or role and content of each message") from None
    if not messages:
        raise UsageError(f"{where}: prompt: no message; give a text or role and content of each message")
    return message_dicts(messages)


def _with_system(messages: list[Json], system: str) -> Conversation:
    return Conversation([{"role": "system", "content": system}, *messages] if system else messages)


def _plain(sample: Sample) -> dict[str, Any]:
    reasoning = {"reasoning": sample.reasoning} if sample.reasoning else {}
    return {
        "text": sample.text,
        **reasoning,
        "ended": sample.ended,
        "finish_reason": sample.finish_reason,
        "tokens": len(sample.token_ids),
        "mean_logprob": mean_logprob(sample.logprobs),
    }


def readable(sample: Sample) -> str:
    """Return a response for people to read, its reasoning set apart from the answer."""
    if not sample.reasoning and sample.answered:
        return sample.text
    head = f"[reasoning: {len(sample.reasoning.split())} words]\n{sample.reasoning}"
    return f"{head}\n\n[answer]\n{sample.text}" if sample.answered else f"{head}\n\n[no answer: {_CUT}]"


def chat(
    sampler: Sampler,
    params: SamplingParams,
    system: str,
    read: Callable[[str], str] = input,
    write: Callable[[str], object] = sys.stdout.write,
) -> None:
    """Talk until the input ends; responses appear token by token, unless a stop text could have to be taken back."""
    write(f"Say something; {RESET} forgets the conversation, an empty line ends it.\n")
    conversation: list[Json] = []
    for turn in itertools.count():
        try:
            said = read("> ").strip()
        except EOFError:
            said = ""
        if not said:
            return
        if said == RESET:
            conversation = []
            continue
        asked = [*conversation, {"role": "user", "content": said}]
        own = dataclasses.replace(params, seed=derived_seed(params.seed, f"turn {turn}"))
        try:
            answer = _stream(sampler, own, _with_system(asked, system), write)
        except UsageError as error:
            write(f"({error}; {RESET} makes room)\n")
            continue
        conversation = [*asked, answer]


def _stream(
    sampler: Sampler, params: SamplingParams, conversation: Conversation, write: Callable[[str], object]
) -> Json:
    """Write a response as it comes, and return it as a message."""
    decoder, tokenizer = DecodeStream(skip_special_tokens=False), sampler.tokenizer.backend_tokenizer
    hidden = hidden_tokens(sampler.tokenizer) | sampler.ending(params).tokens
    shown: list[str] = []

    def show(prompt: int, number: int, token: int) -> None:
        if token not in hidden:
            shown.append(decoder.step(tokenizer, token) or "")
            write(shown[-1])
            sys.stdout.flush()

    ids = encode_prompts(sampler.tokenizer, [conversation])
    ((sample,),) = sampler.generate(ids, params, on_token=None if params.stop else show)
    rest = sample.response.removeprefix("".join(shown))  # all of it, or the half of a character that was held back
    write(f"{rest}\n" if sample.answered else f"{rest}\n(no answer: {_CUT})\n")
    message: Json = {"role": "assistant", "content": sample.text or " "}
    return message | ({"reasoning_content": sample.reasoning} if sample.reasoning and sample.answered else {})


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", type=Path, required=True, help="directory of a committed model artifact")
    parser.add_argument("--sampling", type=json.loads, default={}, help="knobs of sampling as JSON")
    parser.add_argument("--prompt", help="one prompt")
    parser.add_argument("--file", type=Path, help="JSONL file of prompts")
    parser.add_argument("--out", type=Path, help="JSONL file to write, with --file")
    parser.add_argument("--system", default="", help="system message")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--constraint", type=json.loads, help="kind and value, as JSON, of what responses must be")
    parser.add_argument("--cache", type=Path, help="file of responses that need not be made again")
    parser.add_argument("--cache-mb", type=int, default=1024, help="largest size of that file")
    try:
        _run(parser.parse_args())
    except PosttrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print()
    return 0


def _run(options: argparse.Namespace) -> None:
    params = sampling_params(build(SamplingConfig, options.sampling, "sampling"), seed=0)
    manifest = read_manifest(options.model)
    talking = options.prompt is None and options.file is None
    _check(options, params, manifest.kind, talking)
    kind, value = options.constraint or ("", "")
    constraint = read_constraint(kind, value) if kind else None
    require_whole(options.model)
    rows = read_rows(options.file) if options.file is not None else []
    tokenizer = load_tokenizer(options.model)
    model = load_policy(options.model, options.dtype).eval().to("cuda" if torch.cuda.is_available() else "cpu")
    sampler = Sampler(model, tokenizer)
    grammar = constraint_of(Vocabulary.of(tokenizer, sampler.ends), kind, constraint) if constraint else None
    if talking:
        chat(sampler, params, options.system)
        return
    with contextlib.ExitStack() as stack:
        source: Generates = sampler if grammar is None else Constrained(sampler, grammar)
        if options.cache is not None:
            cache = stack.enter_context(ResponseCache(options.cache, options.cache_mb << 20))
            source = CachedSampler(sampler, cache, f"{manifest.digest} {options.dtype}")
        if options.file is not None:
            respond_to_rows(source, tokenizer, params, rows, options.out, options.system)
            print(f"{len(rows)} prompts answered in {options.out}")
            return
        conversation = _with_system(_conversation(options.prompt, "--prompt"), options.system)
        for sample in source.generate(encode_prompts(tokenizer, [conversation]), params)[0]:
            print(readable(sample))


def _check(options: argparse.Namespace, params: SamplingParams, kind: str, talking: bool) -> None:
    if kind != "model":
        raise UsageError(f"{options.model.name}: a {kind} artifact; give a model")
    if (options.file is None) != (options.out is None):
        raise UsageError("--file and --out: one without the other; give both")
    if options.out is not None and options.out.exists():
        raise UsageError(f"{options.out}: exists already; give a new file")
    if options.file is not None and options.prompt is not None:
        raise UsageError("a prompt and --file: give one of them")
    if talking and params.num_samples > 1:
        raise UsageError(f"num_samples={params.num_samples}: a chat has one answer; give a prompt or --file")
    if options.constraint and (talking or options.cache is not None):
        raise UsageError(f"--{options.constraint[0]}: neither a chat nor the cache takes it; give a prompt or --file")
    if talking and options.cache is not None:
        raise UsageError("--cache: a chat is not cached; give a prompt or --file")


if __name__ == "__main__":
    sys.exit(main())
