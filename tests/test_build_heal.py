"""Making up for what is gone: by least squares, and by training."""

import numpy as np
import pytest
import torch
from torch import Tensor

from brickwork.build.compensate import compensate
from brickwork.build.heal import HealRecipe, heal
from brickwork.errors import ConfigurationError, DataError
from brickwork.measure.perplexity import instance_losses
from brickwork.model.carve import Kept, carve_model, places_of
from brickwork.model.ffn import FFN, ffn_of
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.model.taps import tapped
from brickwork.model.train import Encoded
from brickwork.model.units import unit_counts
from tests.tiny import tiny_model


def sequences(count: int = 12, length: int = 20, seed: int = 0) -> list[Encoded]:
    chance = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, 112, (count, length), generator=chance)
    return [Encoded(row[: length - 2 * (i % 3)].tolist(), 4) for i, row in enumerate(ids)]


def half(loaded: LoadedModel) -> Kept:
    counts = [unit_counts(loaded.model, n)["mlp.neurons"] for n in range(2)]
    return Kept(neurons={n: torch.arange(0, count, 2) for n, count in enumerate(counts)})


def activations(loaded: LoadedModel, layer: int) -> Tensor:
    """What the neurons of a layer say at every token, sequence by sequence."""
    said: list[Tensor] = []
    with torch.no_grad(), tapped(
        loaded.model, neurons={layer: lambda h, _routed: said.append(h.clone())}
    ):  # fmt: skip
        for sequence in sequences():
            loaded.model(torch.tensor([sequence.ids]))
    return torch.cat(said)


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "gpt_neox", "opt", "gemma2"])
def test_the_output_projection_is_the_ridge_regression_of_numpy(family: str) -> None:
    loaded = wrap_model(tiny_model(family))
    kept = half(loaded)
    carved = carve_model(loaded, kept)
    compensate(carved, loaded, kept, sequences())
    for n in range(2):
        h = activations(loaded, n).double().numpy()
        full, small = ffn_of(loaded.model, n), ffn_of(carved, n)
        assert isinstance(full, FFN)
        assert isinstance(small, FFN)
        constant = full.down_bias is not None
        centre = h.mean(0) if constant else np.zeros(h.shape[1])
        x, y = (h - centre)[:, ::2], (h - centre)[:, 1::2]
        own = x.T @ x / len(h)
        ridge = 0.1 * np.trace(own) / len(own)
        factors = np.linalg.lstsq(
            np.vstack([x, np.sqrt(ridge * len(h)) * np.eye(len(own))]),
            np.vstack([y, np.zeros((len(own), y.shape[1]))]),
            rcond=None,
        )[0]
        down = full.down.detach().double().numpy()
        expected = down[:, ::2] + down[:, 1::2] @ factors.T
        # Second moments are summed in float32.
        np.testing.assert_allclose(small.down.detach().numpy(), expected, atol=2e-3, rtol=1e-3)
        if full.down_bias is not None and small.down_bias is not None:
            lost = down[:, 1::2] @ (centre[1::2] - centre[::2] @ factors)
            expected = full.down_bias.detach().double().numpy() + lost
            np.testing.assert_allclose(small.down_bias.detach().numpy(), expected, atol=2e-3)


def test_it_brings_back_what_the_kept_neurons_know() -> None:
    """Every second neuron is a copy of its neighbour: nothing is lost but the ridge's share."""
    model = tiny_model("llama")
    with torch.no_grad():
        for n in range(2):
            ffn = ffn_of(model, n)
            assert isinstance(ffn, FFN)
            assert ffn.gate is not None
            ffn.gate[1::2], ffn.up[1::2] = ffn.gate[::2].clone(), ffn.up[::2].clone()
    loaded = wrap_model(model)
    kept = half(loaded)
    carved = carve_model(loaded, kept)
    ids = torch.tensor([sequences(seed=1)[0].ids])
    with torch.inference_mode():
        whole = model(ids).logits
        before = (carved(ids).logits - whole).norm()
        compensate(carved, loaded, kept, sequences())
        after = (carved(ids).logits - whole).norm()
    assert after < 0.4 * before


def test_padding_stays_zero_and_the_full_model_as_it_was() -> None:
    loaded = wrap_model(tiny_model("llama"))
    before = {name: p.clone() for name, p in loaded.model.named_parameters()}
    kept = Kept(neurons={0: torch.arange(10), 1: torch.arange(5, 30)})
    carved = carve_model(loaded, kept)
    compensate(carved, loaded, kept, sequences())
    place = places_of(loaded, kept)[0]
    padding = ~torch.isin(place, kept.neurons[0])
    ffn = ffn_of(carved, 0)
    assert isinstance(ffn, FFN)
    assert padding.sum() == 15
    assert not ffn.down[:, padding].any()
    assert all(torch.equal(p, before[name]) for name, p in loaded.model.named_parameters())


def test_only_what_was_cut_is_compensated() -> None:
    loaded = wrap_model(tiny_model("llama"))
    kept = Kept(neurons={1: torch.arange(0, 48, 2)}, layers=(1,))
    carved, plain = carve_model(loaded, kept), carve_model(loaded, kept)
    compensate(carved, loaded, kept, sequences())
    changed = [
        name
        for (name, a), b in zip(carved.named_parameters(), plain.parameters(), strict=True)
        if not torch.equal(a, b)
    ]
    assert changed == ["model.layers.0.mlp.down_proj.weight"]


def test_experts_cannot_be_compensated() -> None:
    loaded = wrap_model(tiny_model("mixtral"))
    kept = Kept(neurons={n: torch.arange(0, 192, 2) for n in range(2)})
    carved = carve_model(loaded, kept)
    with pytest.raises(ConfigurationError, match="only plain FFNs can be compensated"):
        compensate(carved, loaded, kept, sequences())


def loss(model: torch.nn.Module) -> float:
    found = instance_losses(model, sequences())  # type: ignore[arg-type]
    return float(found.response.sum() / found.response_tokens.sum())


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "qwen3_moe"])
def test_healing_brings_the_loss_down(family: str, method: str) -> None:
    loaded = wrap_model(tiny_model(family))
    carved = carve_model(loaded, half(loaded))
    before, whole = loss(carved), loss(loaded.model)
    told: list[tuple[int, int]] = []
    healed = heal(
        carved, sequences(), HealRecipe(method=method, steps=15, rate=1e-2, warm_up=2),  # type: ignore[arg-type]
        generator=torch.Generator().manual_seed(0),
        report=lambda step, steps, _loss: told.append((step, steps)),
    )  # fmt: skip
    assert healed is carved
    assert loss(healed) < before - 0.1
    assert loss(loaded.model) == whole
    assert told == [(step, 15) for step in range(1, 16)]
    assert not healed.training
    assert all(p.requires_grad for p in healed.parameters())
    names = {name for name, _ in healed.named_parameters()}
    assert names == {name for name, _ in carve_model(loaded, half(loaded)).named_parameters()}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_equal_seeds_heal_equally_and_the_dtype_stays(method: str) -> None:
    loaded = wrap_model(tiny_model("llama").to(torch.bfloat16))
    kept = half(loaded)
    healed = [
        heal(
            carve_model(loaded, kept), sequences(), HealRecipe(method=method, steps=2, rate=1e-2),  # type: ignore[arg-type]
            generator=torch.Generator().manual_seed(seed),
        )
        for seed in (4, 4, 5)
    ]  # fmt: skip
    states = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in healed]
    assert states[0].dtype == torch.bfloat16
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_lora_leaves_embeddings_and_norms() -> None:
    loaded = wrap_model(tiny_model("llama"))
    plain, carved = (carve_model(loaded, half(loaded)) for _ in range(2))
    heal(carved, sequences(), HealRecipe(steps=3), generator=torch.Generator().manual_seed(0))
    changed = {
        name.split(".")[-2]
        for (name, a), b in zip(carved.named_parameters(), plain.parameters(), strict=True)
        if not torch.equal(a, b)
    }
    assert changed == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip


def test_healing_is_refused_without_instances_steps_or_a_method() -> None:
    model, chance = tiny_model("llama"), torch.Generator()
    with pytest.raises(DataError, match="healed on no instance"):
        heal(model, [], HealRecipe(), generator=chance)
    with pytest.raises(ConfigurationError, match="at least one step"):
        heal(model, sequences(), HealRecipe(steps=0), generator=chance)
    with pytest.raises(ConfigurationError, match="the methods are lora, full"):
        heal(model, sequences(), HealRecipe(method="prayer"), generator=chance)  # type: ignore[arg-type]
