"""What a layer of a decoder consists of: parameters, what it keeps of a sequence, and the arithmetic beside its maps.

A block mixes tokens (one way, or two side by side) and then changes each by itself (an MLP, or a few of many experts).
Sizes are those of transformers' modules: a test compares every family with them. Routers and the experts' fused tensors
are no linear maps.
"""

from __future__ import annotations

import dataclasses

from posttrain.plan.mixers import Maps, Mixer


@dataclasses.dataclass(frozen=True)
class Mlp:
    """Gated MLP, the same for every token."""

    hidden: int
    inner: int
    bias: bool = False
    fused: bool = False
    """Gate and up are one map."""
    name: str = "mlp"

    def maps(self) -> Maps:
        """Return the linear maps."""
        down = {f"{self.name}.down_proj": (self.inner, self.hidden)}
        if self.fused:
            return {f"{self.name}.gate_up_proj": (self.hidden, 2 * self.inner), **down}
        wide = (self.hidden, self.inner)
        return {f"{self.name}.gate_proj": wide, f"{self.name}.up_proj": wide, **down}

    def others(self) -> int:
        """Return the parameters of biases."""
        return 2 * self.inner + self.hidden if self.bias else 0

    def idle(self) -> int:
        """Return the parameters that a token does not meet: none."""
        return 0

    def copies(self) -> int:
        """Return how often a token stands in its inputs."""
        return 1

    def width(self) -> int:
        """Return the features that a token has inside."""
        return self.inner


@dataclasses.dataclass(frozen=True)
class Experts:
    """A router that sends each token to a few of many MLPs, and perhaps one MLP that every token goes through."""

    hidden: int
    inner: int
    """Of each expert."""
    count: int
    per_token: int
    shared: int = 0
    """Width of the MLP that all tokens share."""
    shared_gate: bool = False
    bias: bool = False
    """Of router and experts."""
    linear_router: bool = False
    """The router is an `nn.Linear`."""
    name: str = "mlp"
    shared_name: str = "shared_expert"

    def maps(self) -> Maps:
        """Return the linear maps: those of the shared MLP."""
        router = {f"{self.name}.router": (self.hidden, self.count)} if self.linear_router else {}
        if not self.shared:
            return router
        shared = Mlp(self.hidden, self.shared, name=f"{self.name}.{self.shared_name}").maps()
        gate = {f"{self.name}.shared_expert_gate": (self.hidden, 1)} if self.shared_gate else {}
        return {**router, **shared, **gate}

    def _each(self) -> int:
        return 3 * self.hidden * self.inner + (2 * self.inner + self.hidden if self.bias else 0)

    def others(self) -> int:
        """Return the parameters of the router and of all experts."""
        router = self.count * (self.hidden * (not self.linear_router) + self.bias)
        return router + self.count * self._each()

    def idle(self) -> int:
        """Return the parameters of the experts that a token is not sent to."""
        return (self.count - self.per_token) * self._each()

    def unread(self, batch: int) -> float:
        """Return the parameters that a step of so many tokens does not read, where each chooses evenly."""
        return self.count * (1 - self.per_token / self.count) ** batch * self._each()

    def copies(self) -> int:
        """Return how often a token stands in its inputs: once for each of its experts."""
        return self.per_token + (1 if self.shared else 0)

    def width(self) -> int:
        """Return the features that a token has inside."""
        return self.per_token * self.inner + self.shared


@dataclasses.dataclass(frozen=True)
class Block:
    """One layer."""

    mixers: tuple[Mixer, ...]
    """What mixes tokens; several work side by side."""
    feed_forward: Mlp | Experts | None
    norms: int
    """Parameters of the norms around both."""

    def maps(self) -> Maps:
        """Return ``{module name: (inputs, outputs)}`` of the linear maps."""
        found: Maps = {}
        for part in (*self.mixers, *([self.feed_forward] if self.feed_forward else [])):
            found.update(part.maps())
        return found

    def hidden(self) -> int:
        """Return the width of a token's state."""
        return self.mixers[0].hidden

    def linear(self) -> int:
        """Return the weights of the linear maps."""
        return sum(inputs * outputs for inputs, outputs in self.maps().values())

    def parameters(self) -> int:
        """Return all parameters."""
        others = sum(mixer.others() for mixer in self.mixers)
        return self.linear() + others + (self.feed_forward.others() if self.feed_forward else 0) + self.norms

    def idle(self) -> int:
        """Return the parameters that a token does not meet."""
        return self.feed_forward.idle() if self.feed_forward else 0

    def kept(self, context: int, cards: int = 1) -> float:
        """Return the values that it keeps of a sequence of so many tokens, on each of the cards that share it."""
        return sum(mixer.kept(context) / mixer.parts(cards) for mixer in self.mixers)

    def mixing_flops(self, context: int, causal: bool) -> float:
        """Return the forward FLOPs of a token beside its maps."""
        return sum(mixer.mixing_flops(context, causal) for mixer in self.mixers)
