"""Make the base model: import one from a folder or the Hugging Face Hub, or start a Llama from random weights.

python -m posttrain.train.base path=FOLDER pad_token='<|pad|>' chat_template=chatml output=DIR
"""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from posttrain.data.chat.probe import probe
from posttrain.data.chat.templates import template_digest, template_of, writes_date
from posttrain.data.chat.tokenizer import check_tokenizer, fix_template, prepare_tokenizer, tokenizer_digest
from posttrain.data.records import Demonstration, dataset_type, read_records
from posttrain.models.declared import end_token_ids
from posttrain.models.load import NEW_TOKENS, new_token_ids
from posttrain.models.pretrained import download, find_weights, model_license, stored_parameters
from posttrain.models.published_adapter import base_of, is_adapter_folder, merged_with_base, trained_rows
from posttrain.models.tokenizer import train_tokenizer, turns
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError
from posttrain.stage.files import write_json_atomic
from posttrain.train.config.base import ArchitectureConfig, BaseConfig

NEW_ROW_SPREAD = 0.5
"""Standard deviation of a new token's embedding, in that of the embeddings which the model has: told apart by an
adapter, and near enough to the mean to leave what the model says as it was."""


def run(config: BaseConfig, context: Context) -> StageResult:
    """Write a model folder whose tokenizer can pad, can chat and knows where a turn ends."""
    output = context.output
    template = chat_template(config.chat_template, config.chat_template_file)
    special = {
        "template": template,
        "own_name": config.chat_template_name,
        "pad_token": config.pad_token,
        "eos_token": config.eos_token,
    }
    origin: dict[str, Any] = {"trust_remote_code": config.trust_remote_code}
    licenses: list[str] = []
    if config.architecture is not None:
        tokenizer = tokenizer_from_data(context.inputs, config.architecture)
        origin |= dress(tokenizer, special, config)
        model = random_llama(config.architecture, tokenizer, context.spec.seed)
        model.to(getattr(torch, config.dtype or "float32")).save_pretrained(output)
    else:
        folder = Path(config.path or download(config.hub_name or "", config.revision, config.trust_remote_code))
        if config.hub_name is not None:
            origin |= {"hub_name": config.hub_name, "commit": folder.name}
        tokenizer, as_published, template_facts = import_model(folder, output, special, config, context.spec.seed)
        origin |= template_facts
        licenses = model_license(folder)
    tokenizer.save_pretrained(output)
    record_token_ids(output, tokenizer)
    if config.hub_name is not None:
        origin["as_published"] = as_published and stated_ends(output) == stated_ends(folder)
    parameters, dtype = stored_parameters(sorted(output.glob("*.safetensors")))
    digests = {"template_sha256": template_digest(tokenizer), "tokenizer_sha256": tokenizer_digest(tokenizer)}
    return StageResult(
        metrics={"parameters": parameters, "vocab_size": len(tokenizer)},
        headline=f"{parameters / 1e6:,.2f} M parameters, {len(tokenizer):,} tokens of vocabulary",
        licenses=licenses,
        facts={
            "parameters": parameters,
            "dtype": dtype,
            "vocab_size": len(tokenizer),
            "new_tokens": new_token_ids(output),
        }
        | digests
        | origin,
    )


def chat_template(name: str | None, file: str | None) -> str | None:
    """Return the chat template to set: its Jinja text from a file, or its name.

    Raises UsageError when the file cannot be read.
    """
    if file is None:
        return name
    try:
        return Path(file).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"train.base.chat_template_file={file}: {error.strerror}; give a Jinja file") from None


def dress(tokenizer: PreTrainedTokenizerBase, special: dict[str, str | None], config: BaseConfig) -> dict[str, Any]:
    """Give a tokenizer its template and special tokens, in place, and return what the manifest says of the template.

    Raises UsageError where a model could not be trained with them.
    """
    prepare_tokenizer(tokenizer, **special)
    date = datetime.date.fromisoformat(config.date) if config.date else datetime.date.today()
    dated = writes_date(template_of(tokenizer).text)
    fix_template(tokenizer, config.template_arguments, date, config.merge_system)
    check_tokenizer(tokenizer)
    facts: dict[str, Any] = {"behaviour": probe(tokenizer)}
    if config.template_arguments:
        facts["arguments"] = config.template_arguments
    if dated:
        facts["date"] = date.isoformat()
    return {"chat_template": facts}


def tokenizer_from_data(inputs: dict[str, Path], architecture: ArchitectureConfig) -> PreTrainedTokenizerBase:
    """Return a tokenizer trained on the training split of the input dataset of demonstrations."""
    if "data" not in inputs:
        raise UsageError("train.base.architecture: give the demonstrations to train the tokenizer on as inputs.data")
    record_type = dataset_type(inputs["data"])
    if record_type is not Demonstration:
        raise UsageError(f"inputs.data holds {record_type.__name__} records; give demonstrations")
    records = read_records(inputs["data"] / "train.parquet", Demonstration)
    return train_tokenizer(turns(records), architecture.vocab_size, architecture.max_position_embeddings)


def random_llama(architecture: ArchitectureConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """Return a Llama with random weights and tied embeddings; the same seed gives the same weights."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            hidden_size=architecture.hidden_size,
            intermediate_size=architecture.intermediate_size,
            num_hidden_layers=architecture.num_layers,
            num_attention_heads=architecture.num_heads,
            num_key_value_heads=architecture.num_kv_heads,
            max_position_embeddings=architecture.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": architecture.rope_theta},
            tie_word_embeddings=True,
        )
    )


def import_model(
    folder: Path, output: Path, special: dict[str, str | None], config: BaseConfig, seed: int
) -> tuple[PreTrainedTokenizerBase, bool, dict[str, Any]]:
    """Bring a pretrained model's weights and configuration to ``output``; return its prepared tokenizer.

    The weight files are copied as they are unless tokens have to be added or the dtype differs; the second value says
    whether they were, the third what the manifest says of the chat template. An adapter is merged into the model that
    it names. Raises UsageError before anything large is read.
    """
    dtype, trust_remote_code = config.dtype, config.trust_remote_code
    adapter = folder if is_adapter_folder(folder) else None
    folder = folder if adapter is None else base_of(adapter, trust_remote_code)
    with_tokenizer = folder if adapter is None or not (adapter / "tokenizer_config.json").is_file() else adapter
    weights = find_weights(folder)
    _, stored_dtype = stored_parameters(weights)
    try:
        pretrained = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(with_tokenizer, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{folder}: no tokenizer or configuration that transformers can read ({reason})") from None
    num_known = min(len(tokenizer), pretrained.get_text_config().vocab_size)
    num_named = len(tokenizer)
    template_facts = dress(tokenizer, special, config)
    model = None
    if adapter is not None:
        model = merged_with_base(adapter, folder, trust_remote_code).to(getattr(torch, dtype or stored_dtype))
        num_known = min(num_named, model.get_input_embeddings().weight.shape[0])
    elif len(tokenizer) > num_known or dtype not in (None, stored_dtype):
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype or "auto", use_safetensors=True, trust_remote_code=trust_remote_code
        )
    if model is None:
        for path in [*weights, folder / "config.json"]:
            shutil.copyfile(path, output / path.name)
    else:
        embed_new_tokens(model, num_known, len(tokenizer), seed)
        model.save_pretrained(output)
    trained = set() if adapter is None else trained_rows(adapter)
    untrained = [token for token in new_token_ids(folder) if token not in trained]
    record_new_tokens(output, tokenizer, [*untrained, *range(num_known, len(tokenizer))])
    if (folder / "generation_config.json").is_file():
        shutil.copyfile(folder / "generation_config.json", output / "generation_config.json")
    if trust_remote_code:
        for path in folder.glob("*.py"):
            shutil.copyfile(path, output / path.name)
    return tokenizer, model is None, template_facts


@torch.no_grad()
def embed_new_tokens(model: PreTrainedModel, num_known: int, num_tokens: int, seed: int) -> None:
    """Give the tokens from ``num_known`` on embeddings like those before them, at input and output.

    Each is drawn around their mean: equal rows would be equally probable for ever where the embeddings are frozen, as
    under an adapter, so that a turn's end could not be learned. A checkpoint may have spare rows for them; otherwise
    its matrices grow. Tied embeddings stay tied.
    """
    if num_tokens > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(num_tokens, mean_resizing=False)
    matrices = {id(part.weight): part.weight for part in (model.get_input_embeddings(), model.get_output_embeddings())}
    generator = torch.Generator().manual_seed(seed)
    for weight_VD in matrices.values():  # V tokens, D features
        known_VD = weight_VD[:num_known].float()
        noise_VD = torch.randn(num_tokens - num_known, known_VD.shape[1], generator=generator)
        drawn_VD = known_VD.mean(dim=0) + NEW_ROW_SPREAD * known_VD.std(dim=0) * noise_VD
        weight_VD[num_known:num_tokens] = drawn_VD.to(weight_VD.dtype)


def record_new_tokens(output: Path, tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> None:
    """Write which tokens nobody has trained, so that an adapter trains their embeddings; padding never is."""
    new = [i for i in ids if i != tokenizer.pad_token_id]
    if new:
        write_json_atomic(output / NEW_TOKENS, {"ids": new, "tokens": tokenizer.convert_ids_to_tokens(new)})


def stated_ends(folder: Path) -> set[int]:
    """Return the tokens at which a model folder's own configuration ends a text."""
    files = [folder / name for name in ("generation_config.json", "config.json") if (folder / name).is_file()]
    found = [end_token_ids(json.loads(path.read_text(encoding="utf-8")).get("eos_token_id")) for path in files]
    return set(next(filter(None, found), []))


def record_token_ids(output: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the model's and the generation's configuration agree with the tokenizer on BOS, EOS and padding.

    The tokenizer's EOS comes first; the other tokens at which the model ends stay. What the tokenizer does not name
    stays as it is.
    """
    files = (output / "config.json", output / "generation_config.json")
    config, generation = (json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {} for path in files)
    text = config.get("text_config")
    parts = [config, generation] + [text] * isinstance(text, dict)
    ends = end_token_ids(tokenizer.eos_token_id, *(part.get("eos_token_id") for part in parts))
    for part in parts:
        part["eos_token_id"] = ends[0] if len(ends) == 1 else ends
        for name in ("bos_token_id", "pad_token_id"):
            own = getattr(tokenizer, name)
            part[name] = part.get(name) if own is None else own
    for path, values in zip(files, (config, generation), strict=True):
        write_json_atomic(path, values)


if __name__ == "__main__":
    stage_main(run, BaseConfig, kind="model")
