"""The base model: imported from real weights, or made from scratch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from posttrain.data.chat.tokenizer import load_tokenizer
from posttrain.data.messages import Message
from posttrain.data.records import Demonstration, write_dataset
from posttrain.models.adapters import make_trainable
from posttrain.stage.artifact import verify
from posttrain.stage.entry import Context, StageResult
from posttrain.stage.errors import UsageError
from posttrain.stage.files import hash_files
from posttrain.stage.spec import Distributed, StageSpec, Tracking
from posttrain.stage.tracking import NullTracker
from posttrain.train.base import record_token_ids, run
from posttrain.train.config.base import ArchitectureConfig, BaseConfig

STORIES = Path(__file__).resolve().parents[2].parent / "shared" / "models" / "stories260k"
CHATML = {"pad_token": "<|pad|>", "chat_template": "chatml"}
needs_stories = pytest.mark.skipif(not STORIES.is_dir(), reason=f"{STORIES} is absent")


NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def make(root: Path, name: str, inputs: dict[str, Path] | None = None, seed: int = 0, **config: Any) -> StageResult:
    """Run the stage function into ``root / name``."""
    output = root / name
    output.mkdir()
    spec = StageSpec("base", "train.base", "test", "", "", {}, {}, {}, "", "", "", seed, Distributed(), Tracking())
    return run(BaseConfig(**config), Context(spec, inputs or {}, output, root, NullTracker(), True))


def read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return values


def copy_of_stories(root: Path) -> Path:
    return Path(shutil.copytree(STORIES, root / "stories"))


def load_lora(folder: Path) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(folder)
    return make_trainable(model, "lora", 16, 32.0, 0.0, "all-linear", where="train.sft")


def assert_like_the_known(new_ND: torch.Tensor, known_VD: torch.Tensor) -> None:
    """N new rows lie half a standard deviation around the mean, and no two are equal."""
    away_ND = (new_ND - known_VD.mean(dim=0)) / known_VD.std(dim=0)
    assert 0.45 < away_ND.std() < 0.55 and abs(away_ND.mean()) < 0.12
    assert torch.pdist(away_ND).min() > 1


def command(*arguments: str) -> tuple[int, str]:
    """Run the stage as a process, and return its exit code and what it wrote to stderr."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "posttrain.train.base", *arguments]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stderr


@needs_stories
def test_a_pretrained_model_learns_to_chat_and_forgets_nothing(tmp_path: Path) -> None:
    result = make(tmp_path, "base", path=str(STORIES), **CHATML)
    base = tmp_path / "base"
    tokenizer = load_tokenizer(base, generation_markers=True)
    assert (tokenizer.eos_token, tokenizer.pad_token, len(tokenizer)) == ("<|im_end|>", "<|pad|>", 515)
    for name in ("config.json", "generation_config.json"):
        values = read(base / name)
        ids = [values[f"{token}_token_id"] for token in ("bos", "eos", "pad")]
        assert ids == [1, [tokenizer.eos_token_id, 2], tokenizer.pad_token_id]
    before, after = load_file(STORIES / "model.safetensors"), load_file(base / "model.safetensors")
    assert before.keys() == after.keys() and "lm_head.weight" not in after
    embeddings_VD = after.pop("model.embed_tokens.weight")
    old_VD = before.pop("model.embed_tokens.weight")
    assert torch.equal(embeddings_VD[:512], old_VD)
    assert_like_the_known(embeddings_VD[512:], old_VD)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert read(base / "new_tokens.json")["ids"] == result.facts["new_tokens"] == [512, 513]  # padding never is trained
    assert result.facts["parameters"] == sum(tensor.numel() for tensor in after.values()) + embeddings_VD.numel()

    model = AutoModelForCausalLM.from_pretrained(base)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    story = model.generate(torch.tensor([[tokenizer.bos_token_id]]), max_new_tokens=24, do_sample=False)
    assert tokenizer.decode(story[0], skip_special_tokens=True).startswith(
        "Once upon a time, there was a little girl named Lily."
    )


@needs_stories
def test_a_model_that_needs_nothing_is_copied_to_the_byte(tmp_path: Path) -> None:
    first = make(tmp_path, "first", path=str(STORIES), **CHATML)
    second = make(tmp_path, "second", path=str(tmp_path / "first"))
    assert hash_files(tmp_path / "second") == hash_files(tmp_path / "first")
    assert second.facts == first.facts


@needs_stories
def test_spare_rows_of_the_embeddings_are_used(tmp_path: Path) -> None:
    folder = copy_of_stories(tmp_path)
    weights = load_file(folder / "model.safetensors")
    old_VD = weights["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] = torch.cat([old_VD, torch.full((8, 64), 9.0)])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**read(folder / "config.json"), "vocab_size": 520}))
    make(tmp_path, "base", path=str(folder), **CHATML)
    new_VD = load_file(tmp_path / "base" / "model.safetensors")["model.embed_tokens.weight"]
    assert new_VD.shape == (520, 64)
    assert_like_the_known(new_VD[512:515], old_VD)
    assert torch.equal(new_VD[515:], torch.full((5, 64), 9.0))


@needs_stories
def test_every_end_token_is_kept_and_no_known_id_is_lost(tmp_path: Path) -> None:
    folder = copy_of_stories(tmp_path)
    text = {"eos_token_id": 7, "bos_token_id": 5, "pad_token_id": 0, "vocab_size": 512}
    (folder / "config.json").write_text(json.dumps({**read(folder / "config.json"), "bos_token_id": 3}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 2], "temperature": 0.6}))
    tokens = read(folder / "tokenizer_config.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokens, "bos_token": None, "add_bos_token": False}))
    make(tmp_path, "base", path=str(folder), **CHATML)
    eos, config, generation = 513, *(read(tmp_path / "base" / f"{n}.json") for n in ("config", "generation_config"))
    assert (config["eos_token_id"], config["bos_token_id"]) == ([eos, 2, 9], 3)
    assert (generation["eos_token_id"], generation["temperature"]) == ([eos, 2, 9], 0.6)

    composite = tmp_path / "composite"
    composite.mkdir()
    (composite / "config.json").write_text(json.dumps({"eos_token_id": 2, "text_config": text}))
    record_token_ids(composite, load_tokenizer(tmp_path / "base"))
    written = read(composite / "config.json")
    for part in (written, written["text_config"]):
        assert (part["eos_token_id"], part["pad_token_id"]) == ([eos, 2, 7], 514)
    assert written["text_config"]["bos_token_id"] == 5


@needs_stories
def test_an_adapter_learns_to_end_a_turn_with_a_token_that_was_added_for_it(tmp_path: Path) -> None:
    make(tmp_path, "base", path=str(STORIES), **CHATML)
    model = load_lora(tmp_path / "base")
    end, start = 513, 512
    prompt_BT = torch.arange(40, 72).view(4, 8)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(120):
        logits_BV = model(prompt_BT).logits[:, -1]
        loss = torch.nn.functional.cross_entropy(logits_BV, torch.full((4,), end))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    probabilities_BV = logits_BV.softmax(-1)
    assert probabilities_BV[:, end].min() > 0.8  # equal rows: at most a third, as the three tokens share it
    assert probabilities_BV[:, start].max() < 0.1


@needs_stories
def test_an_adapter_folder_is_imported_as_a_whole_model(tmp_path: Path) -> None:
    make(tmp_path, "base", path=str(STORIES), **CHATML)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    rows = {"embed_tokens": [512, 513]}
    config = LoraConfig(target_modules=["q_proj"], init_lora_weights=False, trainable_token_indices=rows)
    adapted = get_peft_model(base, config)
    torch.nn.init.normal_(adapted.get_input_embeddings().token_adapter.trainable_tokens_delta["default"])
    adapted.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    result = make(tmp_path, "merged", path=str(tmp_path / "adapter"))
    assert result.facts["new_tokens"] == [] and not (tmp_path / "merged" / "adapter_config.json").exists()
    ids_BT = torch.tensor([[1, 512, 40, 41, 513]])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(ids_BT).logits, adapted.eval()(ids_BT).logits, atol=1e-4, rtol=1e-4)

    stated = read(tmp_path / "adapter" / "adapter_config.json")
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({**stated, "base_model_name_or_path": "org/no-such-model"})
    )
    code, shown = command(f"path={tmp_path / 'adapter'}", f"output={tmp_path / 'refused'}")
    assert code == 2
    (error,) = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert "an adapter on org/no-such-model: not in the local cache" in error and "base_model_name_or_path" in error


@needs_stories
def test_a_padding_token_of_the_models_own_stays(tmp_path: Path) -> None:
    folder = copy_of_stories(tmp_path)
    tokens = read(folder / "tokenizer_config.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({**tokens, "pad_token": "<unk>"}))
    make(tmp_path, "base", path=str(folder), pad_token="<|pad|>", chat_template="verbatim")
    tokenizer = load_tokenizer(tmp_path / "base")
    assert (tokenizer.pad_token, len(tokenizer)) == ("<unk>", 512)
    assert load_file(tmp_path / "base" / "model.safetensors")["model.embed_tokens.weight"].shape[0] == 512


@needs_stories
def test_an_index_that_an_earlier_save_left_is_not_followed(tmp_path: Path) -> None:
    folder = copy_of_stories(tmp_path)
    weights = load_file(folder / "model.safetensors")
    old = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
    save_file(old, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    make(tmp_path, "base", path=str(folder), chat_template="verbatim", pad_token="<unk>")
    assert sorted(path.name for path in (tmp_path / "base").glob("*.safetensors*")) == ["model.safetensors"]
    assert load_file(tmp_path / "base" / "model.safetensors")["model.norm.weight"].abs().sum() > 0


@needs_stories
def test_dtype_and_own_template_and_licence(tmp_path: Path) -> None:
    folder = copy_of_stories(tmp_path)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Stories\n")
    template = tmp_path / "plain.jinja"
    template.write_text(
        "{% for m in messages %}{{ '[' + m.role + ']' + m.content + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    result = make(
        tmp_path, "base", path=str(folder), pad_token="<pad>", chat_template_file=str(template), dtype="bfloat16"
    )
    base = tmp_path / "base"
    assert load_file(base / "model.safetensors")["model.norm.weight"].dtype == torch.bfloat16
    assert (base / "chat_template.jinja").read_text() == template.read_text()
    assert read(base / "config.json")["eos_token_id"] == 2
    assert (result.licenses, result.facts["dtype"], result.facts["vocab_size"]) == (["mit"], "bfloat16", 513)


@needs_stories
def test_unusable_folders_are_refused(tmp_path: Path) -> None:
    folder = copy_of_stories(tmp_path)
    with pytest.raises(UsageError, match=r"no padding token; set train.base.pad_token='<\|pad\|>'"):
        make(tmp_path, "no-pad", path=str(folder))
    with pytest.raises(UsageError, match=r"chat_template_file=none.jinja: No such file"):
        make(tmp_path, "no-template", path=str(folder), chat_template_file="none.jinja")
    weights = folder / "model.safetensors"
    weights.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UsageError, match="not a safetensors file"):
        make(tmp_path, "pointer", path=str(folder), **CHATML)
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"only as pytorch_model.bin, and pickled files are never opened"):
        make(tmp_path, "pickled", path=str(folder), **CHATML)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UsageError, match=r"no model-00001-of-00001.safetensors; give a Hugging Face folder"):
        make(tmp_path, "shards", path=str(folder), **CHATML)
    (folder / "config.json").unlink()
    with pytest.raises(UsageError, match=r"no config.json; give a Hugging Face folder"):
        make(tmp_path, "no-config", path=str(folder), **CHATML)


@needs_stories
def test_code_and_pickles_stay_behind(tmp_path: Path) -> None:
    folder = copy_of_stories(tmp_path)
    (folder / "modeling_stories.py").write_text("raise SystemExit('must not run')\n")
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    make(tmp_path, "base", path=str(folder), **CHATML)
    assert {path.suffix for path in (tmp_path / "base").iterdir()} == {".json", ".safetensors", ".jinja"}


@needs_stories
def test_by_hand_it_commits_an_artifact_or_exits_with_one_line(tmp_path: Path) -> None:
    output = tmp_path / "base"
    code, errors = command(f"path={STORIES}", "pad_token=<|pad|>", "chat_template=chatml", f"output={output}")
    assert code == 0, errors
    assert verify(output) == []
    code, errors = command("hub_name=posttrain/no-such-model", f"output={tmp_path / 'hub'}")
    assert code == 2
    assert "error: train.base.hub_name=posttrain/no-such-model: not in the local cache" in errors
    assert "train.base.path" in errors and "Traceback" not in errors


def arithmetic(directory: Path) -> Path:
    """A dataset of sums in two splits; the word in the held-out one must not shape the vocabulary."""
    directory.mkdir()
    rows = [
        Demonstration(
            id=str(index),
            source="sums",
            split="eval" if index == 0 else "train",
            prompt=[Message(role="user", content=f"How much is {index} plus {index}?")],
            completion=[
                Message(role="assistant", content=f"{NUMBERS[index % 10]}: {2 * index}." if index else "zyx" * 99)
            ],
        )
        for index in range(50)
    ]
    write_dataset(directory, rows, Demonstration)
    return directory


def test_a_model_from_scratch_depends_on_data_and_seed_only(tmp_path: Path) -> None:
    data = arithmetic(tmp_path / "data")
    shape = ArchitectureConfig(hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, vocab_size=300)
    results = [
        make(tmp_path, name, {"data": data}, seed=seed, architecture=shape)
        for name, seed in (("one", 0), ("two", 0), ("three", 1))
    ]
    files = [hash_files(tmp_path / name) for name in ("one", "two", "three")]
    assert files[0] == files[1]
    assert {name for name in files[0] if files[0][name] != files[2][name]} == {"model.safetensors"}
    assert results[0].facts["vocab_size"] == 300

    tokenizer = load_tokenizer(tmp_path / "one", generation_markers=True)
    assert tokenizer.convert_ids_to_tokens([0, 1, 2]) == ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    assert tokenizer.tokenize("user\n")[0] == "user"
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
    assert "zyx" not in tokenizer.get_vocab()
    text = "Ünïcode 🙂\n\ttabs"
    assert tokenizer.decode(tokenizer(text).input_ids) == text
    config = read(tmp_path / "one" / "config.json")
    assert (config["vocab_size"], config["pad_token_id"], config["eos_token_id"]) == (300, 0, 2)


def test_scratch_needs_demonstrations(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train.base.architecture: give the demonstrations .* as inputs.data"):
        make(tmp_path, "base", architecture=ArchitectureConfig())
