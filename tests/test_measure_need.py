"""Need and choice: against slow references, and the laws of a budget."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from brickwork.brick.check import require_fit
from brickwork.brick.partition import SHARED, Partition, PartitionSpec
from brickwork.brick.spec import Function, Lineage
from brickwork.errors import ConfigurationError, DataError, UnknownNameError
from brickwork.measure.choice import (
    Choice,
    brick_name,
    choose,
    mask_brick,
    random_like,
    silenced,
)
from brickwork.measure.need import NEEDS, UNITS, Asked, best_method, measure_need, units_of
from brickwork.measure.perplexity import instance_losses
from brickwork.measure.unit_sums import sum_units
from brickwork.model.carve import carve_model
from brickwork.model.heads import heads_of
from brickwork.model.load import LoadedModel, wrap_model
from brickwork.model.taps import Routed, output_norms, tapped
from brickwork.model.train import Encoded
from brickwork.model.units import UNITS as SLICES
from brickwork.model.units import unit_counts
from tests.tiny import silence, tiny_model

SEQUENCES = [
    Encoded([5, 17, 40, 99, 3, 28, 61, 7], 3),
    Encoded([8, 100, 2, 33], 1),
    Encoded([50, 51, 52, 20, 21, 22], 5),
]
TOKENS = 5 + 3 + 1  # of responses


def asked(loaded: LoadedModel, units: str, **more: object) -> Asked:
    seed = torch.Generator().manual_seed(0)
    return replace(Asked(loaded, units, SEQUENCES, seed), **more)  # type: ignore[arg-type]


def nats(loaded: LoadedModel, sequence: Encoded) -> Tensor:
    """The summed loss on a response, as transformers computes it."""
    ids = torch.tensor([sequence.ids])
    labels = ids.clone()
    labels[:, : sequence.response_start] = -100
    logits = loaded.model(ids).logits[0, :-1]
    return nn.functional.cross_entropy(logits, labels[0, 1:], ignore_index=-100, reduction="sum")


def factor_taps(model: nn.Module, units: str, factors: dict[int, Tensor]) -> dict[str, object]:
    """Taps that multiply what every unit says at every token by a factor."""

    def neurons(layer: int) -> Callable[[Tensor, Routed | None], Tensor]:
        def tap(h: Tensor, routed: Routed | None) -> Tensor:
            if routed is None:
                return h * factors[layer]
            by_expert = factors[layer].unflatten(1, (-1, routed.width))
            positions = torch.arange(len(h)).unsqueeze(1)
            return h * by_expert[positions, routed.experts].flatten(1)

        return tap

    def heads(layer: int) -> Callable[[Tensor], Tensor]:
        group = heads_of(model.config, layer).group  # type: ignore[arg-type]
        return lambda z: z * factors[layer].repeat_interleave(group, 1).unsqueeze(-1)

    def blocks(layer: int) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda before, after: before + factors[layer] * (after - before)

    make = {"neurons": neurons, "heads": heads, "layers": blocks}[units]
    word = "blocks" if units == "layers" else units
    return {word: {n: make(n) for n in factors}}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "mixtral", "qwen3_moe"])
@pytest.mark.parametrize("units", ["neurons", "heads", "layers"])
def test_what_is_owed_is_the_slope_of_the_loss(family: str, units: str) -> None:
    """Gradients of a factor of 1 for every token and unit, one instance at a time."""
    loaded = wrap_model(tiny_model(family))
    counts = units_of(asked(loaded, units))
    owed = {n: torch.zeros(count) for n, count in counts.items()}
    squares = {n: torch.zeros(count) for n, count in counts.items()}
    for sequence in SEQUENCES:
        shapes = {n: (len(sequence.ids), count) for n, count in counts.items()}
        factors = {n: torch.ones(shape, requires_grad=True) for n, shape in shapes.items()}
        with tapped(loaded.model, **factor_taps(loaded.model, units, factors)):
            loss = nats(loaded, sequence)
        slopes = torch.autograd.grad(loss, list(factors.values()))
        for n, slope in zip(factors, slopes, strict=True):
            owed[n] += slope.sum(0).abs() / TOKENS
            squares[n] += slope.square().sum(0) / TOKENS
    found = sum_units(loaded, SEQUENCES, units, gradients=True)
    for n in counts:  # batched and padded, sums in another order: float32 to 1e-4
        torch.testing.assert_close(found.owed[n], owed[n], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(found.squares[n], squares[n], atol=1e-4, rtol=1e-3)


def test_magnitude_is_the_share_of_the_residual_stream() -> None:
    loaded = wrap_model(tiny_model("llama"))
    inputs: list[list[Tensor]] = [[], []]
    streams: list[list[Tensor]] = [[], []]
    hooks = []
    for n, block in enumerate(loaded.model.model.layers):
        hooks.append(block.mlp.down_proj.register_forward_pre_hook(
            lambda _m, args, to=inputs[n]: to.append(args[0][0])
        ))  # fmt: skip
        hooks.append(block.register_forward_hook(
            lambda _m, _args, output, to=streams[n]: to.append(output[0])
        ))  # fmt: skip
    spans = [slice(s.response_start - 1, len(s.ids) - 1) for s in SEQUENCES]
    with torch.no_grad():
        for sequence in SEQUENCES:
            loaded.model(torch.tensor([sequence.ids]))
    for hook in hooks:
        hook.remove()
    found = measure_need(asked(loaded, "neurons"), "magnitude")
    for n in range(2):
        h = torch.cat([own[span] for own, span in zip(inputs[n], spans, strict=True)])
        stream = torch.cat([own[span] for own, span in zip(streams[n], spans, strict=True)])
        length = stream.square().sum(-1).mean().sqrt()
        expected = h.square().mean(0).sqrt() * output_norms(loaded.model, n) / length
        torch.testing.assert_close(found[n], expected, atol=1e-5, rtol=1e-4)  # sums in float64


def test_ablation_is_the_loss_of_a_model_without_the_unit() -> None:
    loaded = wrap_model(tiny_model("qwen3"))
    found = measure_need(asked(loaded, "heads"), "ablation")
    whole = instance_losses(loaded.model, SEQUENCES).response.sum()
    for n in range(2):
        for head in range(2):
            other = tiny_model("qwen3")
            silence(other, SLICES["attn.kv_heads"](other, n, [head]))
            rise = instance_losses(other, SEQUENCES).response.sum() - whole
            assert found[n][head].item() == pytest.approx(rise.item() / TOKENS, abs=1e-5)


@pytest.mark.parametrize("method", NEEDS)
def test_every_row_rates_every_unit_that_it_names(method: str) -> None:
    loaded = wrap_model(tiny_model("mixtral"))
    scores = {n: torch.rand(192) for n in range(2)}
    for units in NEEDS[method].units:
        own = {n: torch.rand(4) for n in range(2)} if units == "heads" else scores
        question = asked(loaded, units, scores=own, partition=partition_of(loaded))
        need = measure_need(question, method)
        assert {n: len(values) for n, values in need.items()} == units_of(question)
        assert all(bool(values.isfinite().all()) for values in need.values())


def test_the_best_method_is_a_row_for_its_units() -> None:
    assert all(units in NEEDS[best_method(units)].units for units in UNITS)


def partition_of(loaded: LoadedModel, groups: int = 4, shared: int = 5) -> Partition:
    owners = {}
    for n in range(2):
        count = unit_counts(loaded.model, n)["mlp.neurons"]
        owners[n] = torch.arange(count) % groups
        owners[n][:shared] = SHARED
    return Partition(PartitionSpec(base=loaded.base.fingerprint, method="test"), owners)


def test_the_need_of_a_group_is_that_of_its_neurons_together() -> None:
    loaded = wrap_model(tiny_model("llama"))
    partition = partition_of(loaded)
    single = measure_need(asked(loaded, "neurons"), "attribution")
    found = measure_need(asked(loaded, "groups", partition=partition), "attribution")
    for n in range(2):
        expected = [single[n][members].sum() for members in partition.members(n)]
        assert torch.equal(found[n], torch.stack(expected))


LLAMA = wrap_model(tiny_model("llama"))
MOE = wrap_model(tiny_model("qwen3_moe"))  # layer 0 dense with 48 neurons, layer 1 with 4 x 24


@given(st.floats(0.02, 1.0), st.sampled_from(["uniform", "global"]), st.booleans(), st.integers())
def test_a_density_is_met_and_no_layer_is_empty(
    density: float, widths: str, moe: bool, seed: int
) -> None:
    question = asked(
        MOE if moe else LLAMA, "neurons", generator=torch.Generator().manual_seed(seed % 2**63)
    )
    choice = choose(
        question, measure_need(question, "random"), "random", density=density,
        widths=widths,  # type: ignore[arg-type]
    )  # fmt: skip
    kept = {n: len(units) for n, units in choice.chosen.items()}
    of = units_of(question)
    parts = {0: 1, 1: 4 if moe else 1}
    if widths == "uniform":
        # Every part, a layer or an expert, keeps its share to within half a neuron, one at least.
        assert all(kept[n] == parts[n] * max(1, round(density * of[n] / parts[n])) for n in kept)
    else:
        floor = sum(parts[n] * max(1, -(-of[n] // parts[n] * 5 // 100)) for n in of)
        assert abs(sum(kept.values()) - density * sum(of.values())) <= max(0.5, floor)
    assert min(kept.values()) >= 1
    assert all(torch.equal(units, units.unique()) for units in choice.chosen.values())


def test_the_most_needed_are_kept() -> None:
    need = {0: torch.arange(48.0), 1: torch.arange(48.0) + 24}
    question = asked(LLAMA, "neurons")
    uniform = choose(question, need, "magnitude", density=0.5)
    assert [units.tolist() for units in uniform.chosen.values()] == [list(range(24, 48))] * 2
    free = choose(question, need, "magnitude", density=0.5, widths="global")
    assert free.chosen[0].tolist() == list(range(36, 48))
    assert free.chosen[1].tolist() == list(range(12, 48))


def test_a_layer_that_nobody_needs_keeps_a_twentieth() -> None:
    need = {0: torch.zeros(48), 1: torch.ones(48)}
    choice = choose(asked(LLAMA, "neurons"), need, "magnitude", density=0.5, widths="global")
    assert [len(units) for units in choice.chosen.values()] == [3, 45]


def test_shared_neurons_are_kept_and_count() -> None:
    partition = partition_of(LLAMA, shared=8)  # and 4 groups of 10
    question = asked(LLAMA, "groups", partition=partition)
    need = {n: torch.tensor([1.0, 4.0, 2.0, 3.0]) for n in range(2)}
    for widths in ("uniform", "global"):
        choice = choose(question, need, "magnitude", density=0.625, widths=widths)  # type: ignore[arg-type]
        assert choice.chosen[0].tolist() == [1, 3]
        expected = torch.cat([partition.members(0)[1], partition.members(0)[3], torch.arange(8)])
        assert torch.equal(choice.kept.neurons[0], expected.sort().values)


def test_the_least_needed_layers_go() -> None:
    question = asked(LLAMA, "layers")
    need = {0: torch.tensor([0.1]), 1: torch.tensor([0.3])}
    choice = choose(question, need, "ablation", density=0.5)
    assert choice.kept.layers == (1,)
    assert choice.summary() == [
        {"layer": 0, "kept": 0, "of": 1},
        {"layer": 1, "kept": 1, "of": 1},
    ]


@pytest.mark.parametrize("units", ["neurons", "groups", "heads", "layers"])
@pytest.mark.parametrize("widths", ["uniform", "global"])
def test_silenced_carved_and_counted_are_the_same(units: str, widths: str) -> None:
    loaded = wrap_model(tiny_model("llama"))
    question = asked(loaded, units, partition=partition_of(loaded))
    choice = choose(
        question, measure_need(question, "magnitude"), "magnitude", density=0.5,
        widths=widths,  # type: ignore[arg-type]
    )  # fmt: skip
    ids = torch.tensor([SEQUENCES[0].ids])
    with torch.inference_mode():
        with silenced(loaded.model, choice.kept):
            expected = loaded.model(ids).logits
        carved = carve_model(loaded, choice.kept)
        # The same terms in another order.
        torch.testing.assert_close(carved(ids).logits, expected, atol=2e-4, rtol=1e-4)
    if widths == "uniform" and units != "layers":
        assert choice.parameters(loaded.model) == carved.num_parameters()


@pytest.mark.parametrize("units", ["neurons", "groups", "heads", "layers"])
def test_random_units_are_as_many(units: str) -> None:
    question = asked(LLAMA, units, partition=partition_of(LLAMA))
    choice = choose(question, measure_need(question, "magnitude"), "magnitude", density=0.5)
    drawn = [random_like(choice, torch.Generator().manual_seed(seed)) for seed in range(8)]
    sizes = [[len(u) for u in own.chosen.values()] for own in (choice, *drawn)]
    if units == "layers":
        assert {sum(own) for own in sizes} == {1}
    else:
        assert all(own == sizes[0] for own in sizes)
    assert len({str(own.chosen) for own in drawn}) > 1
    assert drawn[0].method == "random"


@pytest.mark.parametrize(
    ("family", "units"),
    [("llama", "neurons"), ("gpt2", "neurons"), ("mixtral", "neurons"), ("llama", "groups"),
     ("llama", "heads"), ("gpt2", "layers")],
)  # fmt: skip
def test_a_choice_is_a_brick_that_fits(family: str, units: str) -> None:
    loaded = wrap_model(tiny_model(family), name="org/Tiny")
    question = asked(loaded, units, partition=partition_of(loaded))
    choice = choose(question, measure_need(question, "attribution"), "attribution", density=0.5)
    brick = mask_brick(
        loaded, choice, name=brick_name(loaded.name, "Coding", choice),
        function=Function(labels=("Coding",)), lineage=Lineage(method="carve"),
    )  # fmt: skip
    require_fit(brick, loaded.base)
    assert brick.spec.name == f"tiny-coding-{units}-50"
    assert (brick.spec.origin, brick.spec.granularity) == ("emergent", UNITS[units].granularity)
    if units == "layers":
        gone = [n for n, own in choice.chosen.items() if not len(own)]
        assert [loaded.base.sites[site].layer for site in brick.spec.sites] == gone
        return
    for site, slots in brick.by_site.items():
        kept = slots["keep"].nonzero().squeeze(1)
        layer = loaded.base.sites[site].layer
        assert layer is not None
        if units == "heads":
            heads = heads_of(loaded.model.config, layer)
            width = heads.group * heads.head_dim
            assert (kept // width).unique().tolist() == choice.chosen[layer].tolist()
            assert len(kept) == width * len(choice.chosen[layer])
        else:
            assert torch.equal(kept, choice.kept.neurons[layer])


@pytest.mark.parametrize(
    ("units", "method", "error", "message"),
    [
        ("neuron", "magnitude", UnknownNameError, "did you mean 'neurons'"),
        ("neurons", "magnitud", UnknownNameError, "did you mean 'magnitude'"),
        ("neurons", "ablation", ConfigurationError, "neurons can be rated by fisher, attribution"),
        ("groups", "magnitude", ConfigurationError, "without a partition"),
        ("experts", "magnitude", ConfigurationError, "this llama model has none"),
        ("neurons", "functionality", ConfigurationError, "make one with `brickwork analyze`"),
    ],
)
def test_need_is_refused(units: str, method: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        measure_need(asked(LLAMA, units), method)


def test_need_wants_instances_and_a_partition_of_this_model() -> None:
    with pytest.raises(DataError, match="no instance to choose neurons on"):
        measure_need(asked(LLAMA, "neurons", sequences=[]), "magnitude")
    with pytest.raises(ConfigurationError, match=r"divides 96 neurons of layers\.1"):
        measure_need(asked(LLAMA, "groups", partition=partition_of(MOE)), "magnitude")


def test_choices_are_refused() -> None:
    question = asked(MOE, "experts")
    need = measure_need(question, "magnitude")
    with pytest.raises(ConfigurationError, match="above 0 and at most 1"):
        choose(question, need, "magnitude", density=0.0)
    with pytest.raises(ConfigurationError, match="would still be picked by the router"):
        choose(question, need, "magnitude", density=0.5, widths="global")
    choice: Choice = choose(question, need, "magnitude", density=0.5)
    with pytest.raises(ConfigurationError, match="the router would still pick the others"):
        mask_brick(MOE, choice, name="x", function=Function(), lineage=Lineage())
    gpt2 = asked(wrap_model(tiny_model("gpt2")), "heads")
    need = measure_need(gpt2, "random")
    with pytest.raises(ConfigurationError, match="a smaller gpt2 model can have 4"):
        choose(gpt2, need, "random", density=0.5)
    masked = choose(gpt2, need, "random", density=0.5, plain=False)
    assert [len(units) for units in masked.chosen.values()] == [2, 2]
