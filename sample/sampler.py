"""Sampling from a causal language model: the name under which other programs import the sampler."""

from posttrain.sample.engine.sampler import Sampler

__all__ = ["Sampler"]
