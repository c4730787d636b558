"""Rows of the embeddings that an adapter trains: those of the tokens that were added for a chat template.

peft keeps such rows beside the frozen matrices and puts them in their place. Its layers copy the whole matrix at each
call, and do not show an output layer's bias; these compute with the rows alone, to the same numbers.

Letters of array shapes: B rows, T positions, V tokens of the vocabulary, R tokens whose rows are trained, E features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial
from torch.nn import functional

from posttrain.models.cpu.linear import is_plain
from posttrain.stage.errors import UsageError


class TrainedRows(TrainableTokensLayer):
    """A matrix of embeddings, or an output layer, some of whose rows are trained."""

    def get_merged_weights(self, active_adapters: Sequence[str]) -> Tensor:
        """Return the whole matrix with the trained rows in their place, for what cannot do with the rows alone."""
        weight_VE = whole(self.base_layer.weight)
        for name in active_adapters:
            if self._has(name):
                index_R = torch.tensor(self.token_indices[name], device=weight_VE.device)
                rows_RE = whole(self.trainable_tokens_delta[name]).to(weight_VE.dtype)
                weight_VE = weight_VE.index_copy(0, index_R, rows_RE)
        return weight_VE

    def forward_adapters(self, x: Tensor, active_adapters: Sequence[str], *args: Any, **kwargs: Any) -> Tensor:
        """Return what the matrix with the trained rows would make of ids ``BT``, or of states ``…E``."""
        names = [name for name in active_adapters if self._has(name)]
        if self.disable_adapters or self.merged or not names:
            untouched: Tensor = super().forward_adapters(x, names, *args, **kwargs)
            return untouched
        made: Tensor = self.base_layer(x, *args, **kwargs)
        apply = self._looked_up if isinstance(self.base_layer, nn.Embedding) else self._projected
        for name in names:
            index_R = torch.tensor(self.token_indices[name], device=x.device)
            made = apply(made, x, index_R, whole(self.trainable_tokens_delta[name]).to(self.base_layer.weight.dtype))
        return made

    def _has(self, name: str) -> bool:
        return name in self.trainable_tokens_delta

    def _looked_up(self, made_BTE: Tensor, ids_BT: Tensor, index_R: Tensor, rows_RE: Tensor) -> Tensor:
        hits_BTR = ids_BT[..., None] == index_R
        rows_BTE = functional.embedding(hits_BTR.int().argmax(-1), rows_RE)
        if (scale := self._get_embed_scale()) is not None:
            rows_BTE = rows_BTE * scale.to(rows_BTE.dtype)
        return torch.where(hits_BTR.any(-1, keepdim=True), rows_BTE.to(made_BTE.dtype), made_BTE)

    def _projected(self, made: Tensor, states: Tensor, index_R: Tensor, rows_RE: Tensor) -> Tensor:
        bias_V = self.base_layer.bias
        own = functional.linear(states, rows_RE, None if bias_V is None else bias_V[index_R])
        return made.index_copy(-1, index_R, own.to(made.dtype))


def whole(weights: Tensor) -> Tensor:
    """Return weights in full where FSDP keeps them in parts; gradients are averaged over ranks, as it does."""
    if not isinstance(weights, DTensor):
        return weights
    whole: Tensor = weights.full_tensor(grad_placements=[Partial("avg")] * weights.device_mesh.ndim)
    return whole


class TrainedRowsModule(TrainableTokensWrapper):
    """peft's stand-in for the module, which shows its bias too."""

    def _hasattr_wrapped(self, name: str, modules: Any) -> bool:
        return name == "bias" or bool(super()._hasattr_wrapped(name, modules))

    def _getattr_wrapped(self, name: str, modules: Any) -> Any:
        return self.original_module.bias if name == "bias" else super()._getattr_wrapped(name, modules)


def use_rows_alone(model: PeftModel) -> PeftModel:
    """Put these layers, in place, where peft put its own into a model; return the model."""
    for module in model.modules():
        if type(module) is TrainableTokensWrapper:
            module.__class__ = TrainedRowsModule
        elif type(module) is TrainableTokensLayer:
            module.__class__ = TrainedRows
    return model


def rows_over_plain(head: Any) -> bool:
    """Return whether an output layer is a plain one but for trained rows, so that it may be called in parts."""
    return isinstance(head, TrainedRowsModule) and is_plain(head.original_module)


def own_rows(head: TrainedRowsModule) -> tuple[tuple[int, ...], Tensor | None] | None:
    """Return the tokens, ascending, whose rows an output layer trains, and the rows ``RE``; no tokens where it is off.

    None where several adapters train rows at once, so that the layer has to be called.
    """
    layer = head.token_adapter
    off = head.disable_adapters or layer.disable_adapters or layer.merged
    names = [] if off else [name for name in layer.active_adapters if layer._has(name)]
    if len(names) > 1:
        return None
    if not names:
        return (), None
    (name,) = names
    tokens = layer.token_indices[name]
    order_R = sorted(range(len(tokens)), key=tokens.__getitem__)
    rows_RE = whole(layer.trainable_tokens_delta[name]).to(layer.base_layer.weight.dtype)
    if order_R != list(range(len(tokens))):
        rows_RE = rows_RE[order_R]
    return tuple(sorted(tokens)), rows_RE


def trained_token_ids(model: PeftModel) -> list[int]:
    """Return the tokens whose rows a model's adapter trains."""
    indices = getattr(model.peft_config["default"], "trainable_token_indices", None) or {}
    return sorted(set().union(*indices.values())) if isinstance(indices, dict) else sorted(indices)


def row_targets(model: Any, ids: Sequence[int], where: str) -> dict[str, list[int]] | None:
    """Return what peft's ``trainable_token_indices`` are to be for a model that is to train the rows of tokens.

    They are those of the input, and of the output where it has a matrix of its own. Raises UsageError where a matrix
    is not a plain one.
    """
    if not ids:
        return None
    names = {id(module): name for name, module in model.named_modules()}
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(embedding, nn.Embedding) or not (head is None or type(head) is nn.Linear):
        odd = head if isinstance(embedding, nn.Embedding) else embedding
        raise UsageError(
            f"{where}.adapter.new_tokens: true, but {type(odd).__name__} of {model.config.model_type} is not a plain "
            f"matrix whose rows could be trained; set {where}.adapter.new_tokens=false, or {where}.adapter.kind=full"
        )
    targets = {names[id(embedding)]: list(ids)}
    if head is not None and head.weight is not embedding.weight:
        targets[names[id(head)]] = list(ids)
    return targets
