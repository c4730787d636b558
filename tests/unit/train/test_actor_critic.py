"""Policy and critic as one module."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from posttrain.train.nets.actor_critic import ActorCritic, critic_from_reward_model


def small() -> ActorCritic:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=0,
    )
    reward_model = LlamaForSequenceClassification(config)
    reward_model.config.reward_mean, reward_model.config.reward_std = 0.5, 2.0
    return ActorCritic(LlamaForCausalLM(config), critic_from_reward_model(reward_model)).train()


def gradients(model: ActorCritic) -> dict[str, torch.Tensor]:
    ids_BT = torch.arange(2, 26).view(2, 12)
    chosen_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    chosen_BT[:, 5:] = True
    logps_N, entropies_N, values_N = model(ids_BT, chosen_BT, 1.0)
    (logps_N.sum() + entropies_N.sum() + values_N.square().sum()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def test_checkpointed_activations_are_computed_again_in_both_trunks_with_the_same_gradients() -> None:
    plain, checkpointed = small(), small()
    checkpointed.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    calls = dict.fromkeys(("policy", "critic"), 0)
    trunks = {"policy": checkpointed.policy.model, "critic": checkpointed.critic.trunk}
    for name, trunk in trunks.items():

        def count(module: object, inputs: object, name: str = name) -> None:
            calls[name] += 1

        trunk.layers[0].self_attn.register_forward_pre_hook(count)
    expected, got = gradients(plain), gradients(checkpointed)
    assert calls == {"policy": 2, "critic": 2}
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=1e-5, rtol=1e-4)
