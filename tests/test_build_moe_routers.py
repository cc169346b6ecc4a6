"""Routers of a mixture of experts: who decides, how flat they are, and what centroids find."""

from typing import Any

import pytest
import torch
from torch import Tensor

from brickwork.brick.brick import Brick
from brickwork.build.moe import export_moe
from brickwork.build.moe_routers import (
    SPREAD,
    brick_routers,
    centroid_routers,
    flat_router,
    hearing,
)
from brickwork.errors import ConfigurationError
from brickwork.model.ffn import ffn_of
from tests.moe import NEURONS, choices, dense, divide, router_brick, said


def test_routers_that_are_given_decide() -> None:
    loaded = dense("llama")
    partition = divide(loaded)
    generator = torch.Generator().manual_seed(0)
    wanted = {layer: torch.randn(4, 32, generator=generator) for layer in range(2)}
    model = export_moe(loaded, partition, top_k=1, routers=wanted)
    heard: list[Tensor] = []
    router = model.get_submodule("model.layers.0.mlp.gate")
    router.register_forward_hook(lambda _m, inputs, _o: heard.append(inputs[0]))
    with choices(model) as chosen:
        said(model)
    scores = heard[0].reshape(-1, 32) @ wanted[0].T
    best = scores.topk(2).values
    # A step of float32 at a softmax of 1/4, 2**-25, is a logit of 2**-23: a sixteenth of the
    # routers' spread. Scores spread by sqrt(32), so five steps are 1.8; nearer ones may swap.
    clear = best[:, 0] - best[:, 1] > 1.8
    assert clear.float().mean() > 0.5
    assert torch.equal(chosen[0][clear, 0], scores.argmax(1)[clear])


def test_routers_that_do_not_fit_are_refused() -> None:
    loaded = dense("llama")
    for routers, message in (
        ({0: torch.ones(4, 32)}, "layer 1: has none"),
        ({0: torch.ones(3, 32), 1: torch.ones(4, 32)}, r"layer 0: \[3, 32\], not \[4, 32\]"),
        ({0: torch.ones(4, 32) / 0, 1: torch.ones(4, 32)}, "layer 0: holds NaN"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            export_moe(loaded, divide(loaded), routers=routers)


def test_a_flat_router_keeps_every_choice_and_has_the_promised_spread() -> None:
    generator = torch.Generator().manual_seed(0)
    router = torch.randn(8, 64, generator=generator, dtype=torch.float64) + 3
    heard = torch.rand(64, generator=generator) + 0.5
    x = torch.randn(500, 64, generator=generator) * heard
    flat = flat_router(router.float(), heard)
    logits = x @ flat.T
    assert SPREAD / 2 < logits.std(1).mean() < SPREAD * 1.1
    exact = (x.double() @ router.T).argsort(1)
    # Logits in float64 of weights rounded once: only the rounding of float32 can swap two.
    assert (exact == (x.double() @ flat.double().T).argsort(1)).float().mean() > 0.999
    assert torch.equal(flat_router(torch.ones(4, 8), torch.ones(8)), torch.zeros(4, 8))


@pytest.mark.parametrize("family", ["llama", "olmo2"])
def test_what_an_ffn_hears_is_known_from_the_weights(family: str) -> None:
    loaded = dense(family)
    for layer in range(2):
        inputs: list[Tensor] = []
        mlp = loaded.model.get_submodule(f"model.layers.{layer}.mlp")
        hook = mlp.register_forward_pre_hook(lambda _m, args, to=inputs: to.append(args[0]))
        said(loaded.model)
        hook.remove()
        found = inputs[0].reshape(-1, 32).square().mean().sqrt()
        guess = hearing(loaded.model, layer).square().mean().sqrt()
        assert guess == pytest.approx(found.item(), rel=0.25)  # 48 tokens


def test_a_centroid_finds_the_group_that_an_input_is_made_for() -> None:
    loaded = dense("llama")
    partition = divide(loaded)
    ffn: Any = ffn_of(loaded.model, 0)
    directions = torch.eye(32)[:4]
    with torch.no_grad():
        ffn.gate.copy_(directions[partition.owners[0]] + 0.05 * torch.randn(NEURONS, 32))
    router = centroid_routers(loaded.model, partition)[0]
    assert torch.allclose(router.norm(dim=1), torch.ones(4))
    assert torch.equal((directions @ router.T).argmax(1), torch.arange(4))


def test_a_router_brick_gives_its_weights_for_its_own_groups() -> None:
    loaded = dense("llama")
    partition = divide(loaded)
    brick = router_brick(loaded, partition)
    routers = brick_routers(brick, loaded.model, partition)
    assert torch.equal(routers[1], torch.ones(4, 32))
    with pytest.raises(ConfigurationError, match="about other groups than the partition"):
        brick_routers(brick, loaded.model, divide(loaded, seed=1))
    site = brick.spec.sites[1]
    bare = Brick(brick.spec, {n: t for n, t in brick.tensors.items() if n != f"{site}/weight"})
    with pytest.raises(ConfigurationError, match="'r' has owner in layer 1"):
        brick_routers(bare, loaded.model, partition)
