"""Preference pairs of ranked groups, and what a model says of them where they share a prompt."""

import copy
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM as AutoCausal
from transformers import Gemma2Config, LlamaConfig, PreTrainedConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.utils import add_fused_lm_head

from posttrain.models.shared_prompts import share_prompts
from posttrain.train.methods.dpo_trainer import scores_of_responses
from posttrain.train.nets.fused_head import fused_on_cpu
from posttrain.train.rows.collate import collate_pairs, collate_shared_pairs
from posttrain.train.rows.dataset import Pair, as_dataset, make_pairs, pair_dataset


def test_best_worst_takes_the_first_best_and_the_last_worst() -> None:
    assert make_pairs([[2, 1, 3, 3], [1, 1]], "best_worst") == [Pair(0, 1, 3)]


def test_all_takes_every_untied_pair() -> None:
    assert make_pairs([[1, 2, 2]], "all") == [Pair(0, 0, 1), Pair(0, 0, 2)]


def test_a_pair_has_the_reference_log_probabilities_of_its_own_responses() -> None:
    groups = {
        "id": ["g/0", "g/1"],
        "prompt_ids": [[1], [2, 3]],
        "responses_ids": [[[4], [5, 6], [7]], [[8], [9]]],
        "ranks": [[3, 1, 2], [1, 2]],
    }
    names = [("g/1", 1, -5.0), ("g/1", 0, -4.0), ("g/0", 2, -3.0), ("g/0", 1, -2.0), ("g/0", 0, -1.0)]
    reference = pa.table(dict(zip(("id", "response", "logp"), map(list, zip(*names, strict=True)), strict=True)))
    pairs = list(pair_dataset(as_dataset(pa.table(groups), pa.array([3, 3])), reference, "best_worst"))
    assert [(row["chosen_ids"], row["rejected_ids"]) for row in pairs] == [([5, 6], [4]), ([8], [9])]
    assert [(row["ref_chosen_logps"], row["ref_rejected_logps"]) for row in pairs] == [(-2.0, -1.0), (-4.0, -5.0)]
    assert [row["length"] for row in pairs] == [3, 3]


PAIRS = [
    {"prompt_ids": [5, 6, 7, 8], "chosen_ids": [9, 10, 2], "rejected_ids": [11, 2]},
    {"prompt_ids": [20], "chosen_ids": [21, 2], "rejected_ids": [22, 23, 24, 25, 26, 2]},  # nothing left to share
    {"prompt_ids": [7, 30, 9], "chosen_ids": [2], "rejected_ids": [12, 2]},
]
SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
CONFIGS = [
    LlamaConfig(**SIZES),
    Gemma2Config(**SIZES, head_dim=8, sliding_window=3, attn_logit_softcapping=0.5, final_logit_softcapping=2.0),
]


def rows_of_pairs() -> list[dict[str, Any]]:
    reference = {"ref_chosen_logps": -3.0, "ref_rejected_logps": -4.0}
    return [{**pair, **reference, "row": number} for number, pair in enumerate(PAIRS)]


def loss_of(outputs: Any, batch: dict[str, Any]) -> Tensor:
    """DPO's loss by its formula, with beta 0.1 (Rafailov et al. 2023, eq. 7)."""
    chosen_B, rejected_B = outputs.log_probs.sum(1).chunk(2)
    ratios_B = (chosen_B - batch["ref_chosen_logps"]) - (rejected_B - batch["ref_rejected_logps"])
    return -functional.logsigmoid(0.1 * ratios_B).mean()


def not_called(*_: Any, **__: Any) -> None:
    raise AssertionError("a row of shared prompts went to TRL's output layer")


@pytest.mark.parametrize("in_tiles", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_pairs_with_a_shared_prompt_have_the_loss_and_gradients_of_trls_batch(
    config: PreTrainedConfig, in_tiles: bool
) -> None:
    torch.manual_seed(0)
    alone = AutoCausal.from_config(config)
    shared = copy.deepcopy(alone)
    for model in (alone, shared):
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))
    if in_tiles:
        shared.forward = not_called
        fused_on_cpu(shared, mean_logits=True)
    padded = collate_pairs(rows_of_pairs(), 0)
    for name, part in DataCollatorForPreference(0)(rows_of_pairs()).items():
        assert name == "attention_mask" or torch.equal(padded[name], part), name
    labels_BT = padded["input_ids"].masked_fill(padded["completion_mask"] == 0, -100)
    theirs = alone(input_ids=padded["input_ids"], labels=labels_BT, use_cache=False, fused_lm_head=True)
    batch = collate_shared_pairs(rows_of_pairs(), pad_token_id=0)
    ours = scores_of_responses(share_prompts(shared, on_gpu=False), batch)
    trained_BT, own_BT = padded["completion_mask"][:, 1:].bool(), batch["completion_mask"][:, 1:].bool()
    for name in ("log_probs", "entropy", "mean_logits", "is_top1"):  # token by token, in TRL's order
        torch.testing.assert_close(getattr(ours, name)[own_BT], getattr(theirs, name)[trained_BT], atol=1e-5, rtol=1e-5)
    expected, found = loss_of(theirs, padded), loss_of(ours, batch)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    found.backward(), expected.backward()
    for own, other in zip(shared.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, atol=1e-4, rtol=1e-4)
    assert int(batch["num_tokens"]) == int(padded["num_tokens"])
    # 3 + (4 + 3), 0 + (3 + 7), 2 + (2 + 3): prompts but for their last tokens, which begin the responses
    assert batch["row_ids"].shape == (1, 27)


def test_the_first_loss_of_a_policy_that_is_its_reference_is_ln_2_whatever_the_lengths() -> None:
    torch.manual_seed(0)
    model = share_prompts(AutoCausal.from_config(CONFIGS[0]), on_gpu=False)
    add_fused_lm_head(model)
    batch = collate_shared_pairs(rows_of_pairs(), pad_token_id=0)
    for number, pair in enumerate(PAIRS):
        for side in ("chosen", "rejected"):
            ids = torch.tensor([[*pair["prompt_ids"], *pair[f"{side}_ids"]]])
            logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
            batch[f"ref_{side}_logps"][number] = logps[len(pair["prompt_ids"]) - 1 :].sum().detach()
    found = loss_of(scores_of_responses(model, batch), batch)
    torch.testing.assert_close(found, torch.tensor(2.0).log(), atol=1e-6, rtol=0)
