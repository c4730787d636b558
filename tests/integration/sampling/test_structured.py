"""Structured output through the engine: an untrained model writes valid documents in any budget that holds one."""

import json
from decimal import Decimal
from typing import Any

import jsonschema
import pytest
import torch
from structured_data import SHARED, all_schemas, json_tokenizer
from structured_demands import demanding_schemas
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from posttrain.data.chat.tokenizer import prepare_tokenizer
from posttrain.data.messages import Conversation
from posttrain.sample.engine.sampler import Sampler
from posttrain.sample.sampling import Sample, SamplingParams
from posttrain.sample.structured.closing import Vocabulary
from posttrain.sample.structured.grammar import json_schema_grammar
from posttrain.sample.structured.json_schema import Validator
from posttrain.sample.structured.ladder import Example, Task, climb, ladder_table, schema_prompt
from posttrain.sample.structured.repair import parse_json
from posttrain.stage.errors import UsageError


def sampler_of(tokenizer: PreTrainedTokenizerBase, layers: int = 1) -> Sampler:
    """Return a sampler of a small Llama with random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Sampler(LlamaForCausalLM(config), tokenizer)


def assert_accepted(schema: dict[str, Any], text: str) -> None:
    """Check a document with jsonschema, in decimals where a step such as 0.01 has no exact float."""
    number = Decimal if "multipleOf" in json.dumps(schema) else float
    validator = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
    validator(json.loads(json.dumps(schema), parse_float=number)).validate(json.loads(text, parse_float=number))
    assert Validator(schema).is_valid(parse_json(text))


def sample_all(
    sampler: Sampler, vocabulary: Vocabulary, schemas: dict[str, dict[str, Any]], budgets: list[float], samples: int
) -> tuple[int, int]:
    """Sample documents of schemas at budgets, given as multiples of the shortest; return documents and refusals."""
    refused, asked = 0, []
    for name in schemas:
        try:
            grammar = json_schema_grammar(vocabulary, schemas[name])
        except UsageError as error:
            assert "schema at /" in str(error)
            refused += 1
            continue
        tokens = {max(grammar.min_tokens, round(grammar.min_tokens * budget)) for budget in budgets}
        asked += [(name, grammar, max_tokens) for max_tokens in sorted(tokens)]
    params = [SamplingParams(max_tokens=max_tokens, num_samples=samples) for _, _, max_tokens in asked]
    rows: list[list[Sample]] = sampler.generate([[5]] * len(asked), params, constraints=[g for _, g, _ in asked])
    for (name, _, max_tokens), row in zip(asked, rows, strict=True):
        for sample in row:
            assert len([token for token in sample.token_ids if token not in vocabulary.ends]) <= max_tokens
            assert_accepted(schemas[name], vocabulary.text(sample.token_ids))
    return samples * len(asked), refused


def test_an_untrained_model_writes_valid_documents() -> None:
    tokenizer = json_tokenizer()
    schemas = dict(sorted(all_schemas().items())[::6])
    documents, refused = sample_all(sampler_of(tokenizer), Vocabulary.of(tokenizer), schemas, [1, 1.5], 1)
    assert documents >= 50 and refused < 0.1 * len(schemas)
    demands = dict(list(demanding_schemas().items())[::8])
    documents, refused = sample_all(sampler_of(tokenizer), Vocabulary.of(tokenizer), demands, [1], 1)
    assert (documents, refused) == (len(demands), 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["trained here", "gpt2", "gptneox"])
def test_an_untrained_model_writes_valid_documents_of_all_schemas(kind: str) -> None:
    tokenizer: PreTrainedTokenizerBase = json_tokenizer()
    if kind != "trained here":
        folder = SHARED / "tokenizers" / kind
        if not folder.is_dir():
            pytest.skip(f"{folder} is not here")
        tokenizer = AutoTokenizer.from_pretrained(str(folder))
        tokenizer.add_special_tokens({"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"})
    schemas, demands = all_schemas(), demanding_schemas()
    sampler, vocabulary = sampler_of(tokenizer), Vocabulary.of(tokenizer)
    documents, refused = sample_all(sampler, vocabulary, schemas, [1, 1.1, 1.3, 2, 4, 10], 2)
    more, more_refused = sample_all(sampler, vocabulary, demands, [1, 1.1, 2], 2)
    assert len(schemas) >= 200 and len(demands) >= 100
    assert refused + more_refused < 0.05 * (len(schemas) + len(demands))
    print(f"{kind}: {documents + more} documents of {len(schemas)} and {len(demands)} schemas")
    print(f"refused by name: {refused} and {more_refused}")


def test_greedy_and_sampled_documents_of_a_trained_model_with_byte_fallback() -> None:
    folder = SHARED / "models" / "stories260k"
    if not folder.is_dir():
        pytest.skip("the pretrained model is not here")
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    sampler = Sampler(LlamaForCausalLM.from_pretrained(str(folder)), tokenizer)
    vocabulary = Vocabulary.of(tokenizer, sampler.ends)
    schema = all_schemas()["records/product"]
    grammar = json_schema_grammar(vocabulary, schema)
    prompt = tokenizer("Once upon a time there was").input_ids
    for temperature in (0.0, 1.0):
        params = SamplingParams(max_tokens=grammar.min_tokens + 20, temperature=temperature, num_samples=4)
        for sample in sampler.generate([prompt], params, constraints=[grammar])[0]:
            assert_accepted(schema, vocabulary.text(sample.token_ids))


def test_a_budget_that_holds_no_document_is_refused() -> None:
    tokenizer = json_tokenizer()
    grammar = json_schema_grammar(Vocabulary.of(tokenizer), all_schemas()["records/order"])
    with pytest.raises(UsageError, match=f"needs {grammar.min_tokens} more"):
        sampler_of(tokenizer).generate([[5]], SamplingParams(max_tokens=grammar.min_tokens - 1), constraints=[grammar])


SCHEMA = {
    "type": "object",
    "properties": {"digit": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["digit"],
    "additionalProperties": False,
}


def test_the_ladder_counts_each_rung() -> None:
    tokenizer = json_tokenizer()
    prepare_tokenizer(tokenizer)
    sampler = sampler_of(tokenizer)
    vocabulary = Vocabulary.of(tokenizer, sampler.ends)
    tasks = [
        Task(Conversation([{"role": "user", "content": f"Give {digit}"}]), SCHEMA, {"digit": digit})
        for digit in range(10)
        for _ in range(4)
    ]
    examples = [Example("Give 3", {"digit": 3})]
    reports = climb(sampler, vocabulary, tasks, SamplingParams(max_tokens=24), examples)
    bare, prompt, repair, grammar = reports
    assert [report.rung for report in reports] == ["bare", "prompt", "repair", "grammar"]
    assert grammar.parsed == grammar.valid == 1.0
    assert bare.valid == 0.0 and prompt.parsed <= repair.parsed <= grammar.parsed
    assert 0 < grammar.right < 0.5 and grammar.right * len(tasks) == round(grammar.right * len(tasks))
    asked = [schema_prompt(task.prompt, SCHEMA, examples) for task in tasks]
    added = [
        len(tokenizer.apply_chat_template(prompted.messages, tokenize=True, add_generation_prompt=True).input_ids)
        - len(tokenizer.apply_chat_template(task.prompt.messages, tokenize=True, add_generation_prompt=True).input_ids)
        for prompted, task in zip(asked, tasks, strict=True)
    ]
    assert repair.tokens == prompt.tokens
    assert grammar.extra_tokens < sum(added) / len(added) < prompt.extra_tokens + 24
    assert ladder_table(reports).count("\n") == 5


def test_the_schema_joins_a_system_message() -> None:
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Give 1"}]
    messages = schema_prompt(Conversation(prompt), SCHEMA, [Example("Give 2", {"digit": 2})]).messages
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[0]["content"].startswith("Be brief.") and json.dumps(SCHEMA["required"]) in messages[0]["content"]
    assert messages[2]["content"] == '{"digit":2}' and messages[3] == prompt[1]
