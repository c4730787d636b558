"""A training step on a GPU that is not there: tensors that lie on the CPU, but say and behave as if they did not.

Every tensor has a place, the CPU or the GPU, by its storage. Asking for a device, moving, and making tensors follow
those places; an operation that mixes them fails, as it would on CUDA. The numbers are real.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
_MIXING = {torch.ops.aten.copy_.default, torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default}
"""What CUDA takes from two devices: copies, and places on the CPU."""


class Places:
    """Which storages lie on the GPU. They are kept alive, so that no address is used again."""

    def __init__(self) -> None:
        self._on_gpu: dict[int, Any] = {}

    def has(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._on_gpu

    def put(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self._on_gpu[storage._cdata] = storage


class _Police(TorchDispatchMode):
    """Holds every operation to one device, and places what it makes there."""

    def __init__(self, places: Places) -> None:
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [part for part in tree_flatten((args, kwargs))[0] if isinstance(part, Tensor)]
        on_gpu = [self.places.has(tensor) for tensor in given]
        if any(on_gpu) and func not in _MIXING:
            strangers = [t for t, there in zip(given, on_gpu, strict=True) if not there and t.dim() > 0]
            if strangers:
                raise RuntimeError(
                    f"{func}: a tensor on the CPU, of shape {tuple(strangers[0].shape)}, among the GPU's"
                )
        result = func(*args, **(kwargs or {}))
        if (given and on_gpu[0]) or (any(on_gpu) and func not in _MIXING):
            for part in tree_flatten(result)[0]:
                if isinstance(part, Tensor):
                    self.places.put(part)
        return result


class _Devices(TorchFunctionMode):
    """Answers what device a tensor is on, and moves and makes tensors where they are asked to be."""

    def __init__(self, places: Places, police: _Police) -> None:
        super().__init__()
        self.places = places
        self.police = police

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return GPU if self.places.has(args[0]) else CPU
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return self.places.has(args[0])
        if func is Tensor.backward:
            with self:  # a mode is off while it answers, and a backward pass asks much
                whole = torch.ones_like(args[0])
                return torch.autograd.graph._engine_run_backward(
                    (args[0],), (whole,), False, False, (), allow_unreachable=True, accumulate_grad=True
                )
        wanted = self._wanted(func, args, kwargs)
        if wanted is None:
            return func(*args, **kwargs)
        args = tuple(CPU if _is_device(part) else part for part in args)
        if "device" in kwargs:
            kwargs["device"] = CPU
        moved = args[0] if args and isinstance(args[0], Tensor) else None
        if moved is not None and (wanted.type == "cuda") == self.places.has(moved):
            return func(*args, **kwargs)
        with self._unwatched():
            made: Tensor = func(*args, **kwargs)
            made = made.clone() if moved is not None else made
        if wanted.type == "cuda":
            self.places.put(made)
        return made

    def _wanted(self, func: Any, args: Any, kwargs: Any) -> torch.device | None:
        """Return the device that a call asks for, if it asks for one."""
        if func in (Tensor.cpu, Tensor.numpy):
            return CPU if func is Tensor.cpu else None
        if kwargs.get("device") is not None:
            return torch.device(kwargs["device"])
        if func is Tensor.to:
            return next((torch.device(part) for part in args[1:] if _is_device(part)), None)
        return None

    @contextlib.contextmanager
    def _unwatched(self) -> Iterator[None]:
        with torch.utils._python_dispatch._disable_current_modes():
            yield


def _is_device(part: Any) -> bool:
    return isinstance(part, torch.device) or (isinstance(part, str) and part.split(":")[0] in ("cpu", "cuda"))


@contextlib.contextmanager
def fake_gpu(module: torch.nn.Module) -> Iterator[None]:
    """Run inside with a module on a GPU that is not there."""
    places = Places()
    for tensor in (*module.parameters(), *module.buffers()):
        places.put(tensor)
    police = _Police(places)
    with _Devices(places, police), police:
        yield


def step_on_fake_gpu() -> None:
    """Have the next trainer do its first step and its first log there, and end the stage with what it would log."""
    from posttrain.stage.errors import PosttrainError
    from posttrain.train.engine.metrics import RatioSums
    from posttrain.train.engine.trainer import StageTrainer
    from posttrain.train.rollouts.collect import Rollout

    def training_step(self: Any, model: Any, inputs: dict[str, Any], num_items: Any = None) -> Any:
        self.args.__dict__["_setup_devices"] = GPU
        self.accelerator.state.device = GPU
        with fake_gpu(self.model):
            self.model.train()
            self.sums = RatioSums(self.args.device)
            if hasattr(self, "begin_phase"):
                self.begin_phase(Rollout(self.episodes, self.last_rollout))
                self.handed_out = 1
            prepared = self._prepare_inputs(inputs)
            items = None if num_items is None else num_items.to(GPU)
            loss = self.compute_loss(self.model, prepared, num_items_in_batch=items)
            loss.backward()
            assert loss.device == GPU
            trained = [p for p in self.model.parameters() if p.grad is not None]
            assert trained and all(p.grad.device == GPU for p in trained)
            logged = self.sums.take("train")
        raise PosttrainError(f"a step on the GPU: {', '.join(sorted(logged))}")

    StageTrainer.training_step = training_step  # type: ignore[method-assign, assignment]
