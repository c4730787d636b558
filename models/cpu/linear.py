"""Linear maps and embeddings that add the gradients of their weights to those of earlier micro-batches in place.

What autograd would do instead, making a matrix of the weight's size for each micro-batch and adding it, is a good part
of the time of a small one. The numbers are the same up to the order of summation.

N tokens, E input features, M output features, V tokens of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional


def is_plain(module: nn.Module) -> bool:
    """Return whether `products` may stand in for a linear map: on a CPU, its weight whole, nothing watching it."""
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and module.weight.shape == (module.out_features, module.in_features)
        and module.weight.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and is_unwatched(module)
    )


def is_unwatched(module: nn.Module) -> bool:
    """Return whether a module has no hooks and no forward of its own: engines and adapters put them there."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not any(hooks) and "forward" not in vars(module)


def products(states_NE: Tensor, *linears: nn.Linear) -> tuple[Tensor, ...]:
    """Return what linear maps make of the same states."""
    made: tuple[Tensor, ...] = _Products.apply(  # type: ignore[no-untyped-call]
        states_NE, *(part for linear in linears for part in (linear.weight, linear.bias))
    )
    return made


def add_product(residual_NM: Tensor, states_NE: Tensor, linear: nn.Linear) -> Tensor:
    """Return ``residual + linear(states)``."""
    made: Tensor = _AddProduct.apply(residual_NM, states_NE, linear.weight, linear.bias)  # type: ignore[no-untyped-call]
    return made


def embed(ids_N: Tensor, embedding: nn.Embedding) -> Tensor:
    """Return the embeddings of tokens."""
    made: Tensor = _Embed.apply(ids_N, embedding.weight, embedding.padding_idx)  # type: ignore[no-untyped-call]
    return made


class _Products(Function):
    @staticmethod
    def forward(ctx: Any, states_NE: Tensor, *parts: Tensor | None) -> tuple[Tensor, ...]:
        ctx.save_for_backward(states_NE, *parts)
        ctx.set_materialize_grads(False)
        weights_and_biases: Any = zip(parts[::2], parts[1::2], strict=True)
        return tuple(functional.linear(states_NE, weight_ME, bias_M) for weight_ME, bias_M in weights_and_biases)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        states_NE, *parts = ctx.saved_tensors
        states_gradient_NE: Tensor | None = None
        of_parts: list[Tensor | None] = []
        for gradient_NM, weight_ME, bias_M in zip(gradients, parts[::2], parts[1::2], strict=True):
            if gradient_NM is None:
                of_parts += [None, None]
                continue
            needed = ctx.needs_input_grad[len(of_parts) + 1]
            of_parts += _part_gradients(needed, gradient_NM, states_NE, weight_ME, bias_M)
            if not ctx.needs_input_grad[0]:
                continue
            if states_gradient_NE is None:
                states_gradient_NE = gradient_NM @ weight_ME
            else:
                states_gradient_NE.addmm_(gradient_NM, weight_ME)
        return states_gradient_NE, *of_parts


class _AddProduct(Function):
    @staticmethod
    def forward(ctx: Any, residual_NM: Tensor, states_NE: Tensor, weight_ME: Tensor, bias_M: Tensor | None) -> Tensor:
        ctx.save_for_backward(states_NE, weight_ME, bias_M)
        made_NM = torch.addmm(residual_NM, states_NE, weight_ME.t())
        return made_NM if bias_M is None else made_NM.add_(bias_M)

    @staticmethod
    def backward(ctx: Any, gradient_NM: Tensor) -> tuple[Tensor | None, ...]:
        states_NE, weight_ME, bias_M = ctx.saved_tensors
        of_parts = _part_gradients(ctx.needs_input_grad[2], gradient_NM, states_NE, weight_ME, bias_M)
        return gradient_NM, gradient_NM @ weight_ME, *of_parts


class _Embed(Function):
    @staticmethod
    def forward(ctx: Any, ids_N: Tensor, weight_VE: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids_N, weight_VE)
        ctx.padding = padding
        return functional.embedding(ids_N, weight_VE)

    @staticmethod
    def backward(ctx: Any, gradient_NE: Tensor) -> tuple[Tensor | None, ...]:
        ids_N, weight_VE = ctx.saved_tensors
        if ctx.padding is not None:
            kept_N = ids_N != ctx.padding
            ids_N, gradient_NE = ids_N[kept_N], gradient_NE[kept_N]
        kept_VE = kept_gradient(weight_VE)
        if kept_VE is None:
            return None, torch.zeros_like(weight_VE).index_add_(0, ids_N, gradient_NE), None
        kept_VE.index_add_(0, ids_N, gradient_NE)
        return None, None, None


def _part_gradients(
    needed: bool, gradient_NM: Tensor, states_NE: Tensor, weight_ME: Tensor, bias_M: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of weight and bias, None for one that was added to those of earlier micro-batches."""
    if not needed:
        return None, None
    of_bias_M = None if bias_M is None else gradient_NM.sum(0)
    kept_ME = kept_gradient(weight_ME)
    if kept_ME is None:
        return gradient_NM.t() @ states_NE, of_bias_M
    kept_ME.addmm_(gradient_NM.t(), states_NE)
    return None, of_bias_M


def kept_gradient(weight: Tensor) -> Tensor | None:
    """Return what to add a gradient to, if anything: engines that reduce gradients learn of them from autograd."""
    return None if dist.is_initialized() else weight.grad
