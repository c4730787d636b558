"""Metrics that cost no synchronisation until they are logged."""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.distributed as dist
from torch import Tensor


def peak_memory() -> dict[str, float]:
    """Return ``peak_memory_gb``, the most that this process has had allocated on its GPU so far, in 10⁹ bytes.

    Nothing without a GPU. The allocator's slack and the CUDA context are not in it.
    """
    return {"peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9} if torch.cuda.is_available() else {}


class RatioSums:
    """Sums numerators and denominators on one device, wherever they come from; `take` reduces them over all ranks."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._sums: dict[str, dict[str, Tensor]] = defaultdict(dict)

    def add(self, mode: str, name: str, numerator: Tensor | float, denominator: Tensor | float) -> None:
        """Add a term of ``Σ numerator / Σ denominator`` for ``train`` or ``eval``."""
        term = torch.stack([self._here(numerator), self._here(denominator)])
        sums = self._sums[mode]
        sums[name] = sums[name] + term if name in sums else term

    def _here(self, value: Tensor | float) -> Tensor:
        return torch.as_tensor(value).detach().to(self.device, torch.float64)

    def take(self, mode: str) -> dict[str, float]:
        """Return every ratio over all ranks, and start again from nothing."""
        sums = self._sums.pop(mode, {})
        if not sums:
            return {}
        stacked = torch.stack([sums[name] for name in sorted(sums)])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(stacked)
        return {
            name: (top / bottom if bottom else float("nan"))
            for name, (top, bottom) in zip(sorted(sums), stacked.tolist(), strict=True)
        }
