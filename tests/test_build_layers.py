"""Bricks of layers: what they do, and what is refused."""

import pytest
import torch

from brickwork.brick.check import require_fit
from brickwork.brick.effects import Exit, Skip
from brickwork.brick.forms import effects_of
from brickwork.build.layers import exit_brick, skip_brick
from brickwork.errors import ConfigurationError
from tests.served import loaded
from tests.tiny import FAMILIES


@pytest.mark.parametrize("family", FAMILIES)
def test_bricks_of_layers_fit_and_name_their_blocks(family: str) -> None:
    base = loaded(family)
    skip, exit = skip_brick(base, [1]), exit_brick(base, [1, 0], 0.9)
    require_fit(skip, base.base)
    require_fit(exit, base.base)
    (left_out,) = effects_of(skip)
    assert isinstance(left_out, Skip)
    assert base.base.sites[left_out.site].address == "layers.1"
    assert float(left_out.share) == 1
    exits = effects_of(exit)
    assert [base.base.sites[e.site].layer for e in exits] == [0, 1]
    assert all(
        isinstance(e, Exit) and torch.equal(e.confidence, torch.tensor([0.9])) for e in exits
    )
    assert (skip.spec.name, exit.spec.name) == ("skip-1", "exit-0-1")
    assert exit.spec.lineage.arguments == {"confidence": 0.9}


def test_what_a_model_does_not_have_is_refused() -> None:
    base = loaded("llama")
    with pytest.raises(ConfigurationError, match="layer 2 was named; this model has the layers 0"):
        skip_brick(base, [1, 2])
    with pytest.raises(ConfigurationError, match="all 2 blocks were to be skipped"):
        skip_brick(base, [0, 1])
    with pytest.raises(ConfigurationError, match="no layer was named"):
        exit_brick(base, [], 0.5)
    with pytest.raises(ConfigurationError, match=r"confidence 1\.5 was asked for"):
        exit_brick(base, [0], 1.5)
