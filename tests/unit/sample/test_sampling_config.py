"""Sampling presets become parameters, and a combination that cannot be is refused where it was given."""

import pytest

from posttrain.pipeline.config.compose import compose_config
from posttrain.sample.config.sampling import SamplingConfig, sampling_params
from posttrain.stage.errors import UsageError
from posttrain.stage.schema import build


@pytest.mark.parametrize(
    ("preset", "temperature", "top_p", "top_k", "seed"),
    [
        ("creative", 0.7, 0.95, 50, 9),
        ("factual", 0.2, 0.9, 40, 9),
        ("code", 0.2, 0.9, 20, 9),
        ("general", 0.5, 0.9, 0, 9),
        ("eval", 0.0, 1.0, 0, 0),
    ],
)
def test_presets(preset: str, temperature: float, top_p: float, top_k: int, seed: int) -> None:
    config = compose_config(["recipe=demo", f"sampling={preset}", "sampling.stop=['###']"])
    params = sampling_params(config.sampling, seed=9)
    assert (params.temperature, params.top_p, params.top_k, params.seed) == (temperature, top_p, top_k, seed)
    assert params.stop == ("###",)


def test_a_combination_that_cannot_be_names_its_place() -> None:
    with pytest.raises(UsageError, match="sampling: num_beams=4: beam search follows the model alone"):
        build(SamplingConfig, {"num_beams": 4}, "sampling")
    with pytest.raises(UsageError, match=r"sampling\.top_pp: unknown key; did you mean 'top_p'\?"):
        build(SamplingConfig, {"top_pp": 1}, "sampling")
