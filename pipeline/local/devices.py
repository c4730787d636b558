"""The GPUs of this machine, lent to the stages that run at once: each stage has its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


class Devices:
    """Lends GPUs by the names that CUDA knows them by: indices, UUIDs or names of MIG instances."""

    def __init__(self, names: Sequence[str], stages_each: int = 1) -> None:
        """``stages_each`` is how many stages may share one."""
        self._names = tuple(names)
        self._stages_each = stages_each
        self._lent: Counter[str] = Counter()

    def has(self, count: int) -> bool:
        """Return whether so many can be lent now."""
        return len(self._free()) >= count

    def lend(self, count: int) -> list[str]:
        """Return so many, those first that are lent least; the caller has asked whether there are."""
        lent = sorted(self._free(), key=lambda name: self._lent[name])[:count]
        self._lent.update(lent)
        return sorted(lent, key=self._names.index)

    def take_back(self, lent: Sequence[str]) -> None:
        """Have again what was lent."""
        self._lent.subtract(lent)

    def _free(self) -> list[str]:
        return [name for name in self._names if self._lent[name] < self._stages_each]
