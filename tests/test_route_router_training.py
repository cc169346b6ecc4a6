"""Training of routers: counted quantiles, planted groups that are found, bricks, and refusals."""

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from brickwork.brick.effects import Route
from brickwork.brick.folder import read_brick, write_brick
from brickwork.brick.forms import effects_of
from brickwork.brick.partition import Partition, PartitionSpec
from brickwork.errors import ConfigurationError, DataError, UnknownNameError
from brickwork.measure.centroids import centroids, weighted_centroids
from brickwork.measure.instances import encode_instances
from brickwork.model.ffn import FFN
from brickwork.model.parts import ffn_row_of
from brickwork.model.taps import output_norms
from brickwork.model.train import Encoded
from brickwork.route.router_learners import (
    OBJECTIVES,
    Learner,
    Place,
    RouterRecipe,
    balance_loss,
    gate_scorer,
    mlp_scorer,
)
from brickwork.route.router_passes import captured_energy, dense_ffn, dense_layers, energy_kept
from brickwork.route.router_training import (
    TRAININGS,
    routes_of,
    split_sequences,
    train_router,
    train_slots,
)
from brickwork.route.routers import (
    Level,
    Reads,
    group_scores,
    groups_kept,
    kept,
    neurons_of,
    prompt_kept,
    reading,
    truth_scores,
)
from tests.served import loaded
from tests.study import labelled

FAMILIES = ("llama", "gpt2", "opt", "phi3", "gemma3_text", "qwen3_moe")
BRICKS = tuple(name for name, row in TRAININGS.items() if row.router)
GROUPS = 6


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def sequences(family: str, per_function: int = 12) -> tuple[Encoded, ...]:
    found = encode_instances(loaded(family), labelled(per_function), 64).sequences
    return tuple(s for s in found if s is not None)


@cache
def partition(family: str) -> Partition:
    """Six groups in every dense layer, with some shared neurons in the first."""
    owners = {}
    for n in dense_layers(loaded(family).model):
        owners[n] = torch.arange(48) % GROUPS
        owners[n][: GROUPS * (n == 0)] = -1
    return Partition(PartitionSpec(base=loaded(family).base.fingerprint, method="planted"), owners)


def partition_for(kind: str, family: str) -> Partition | None:
    return partition(family) if TRAININGS[kind].grouped else None


@pytest.mark.parametrize("family", FAMILIES[:5])
def test_quantiles_are_those_of_all_values_of_the_activation_function(family: str) -> None:
    model, texts = loaded(family).model, sequences(family)
    slots = train_slots(
        loaded(family), [("threshold", None)], sequences=texts, recipe=RouterRecipe(),
        generator=chance(),
    )[0]  # fmt: skip
    for layer in dense_layers(model):
        seen: list[Tensor] = []
        module = model.get_submodule(
            ffn_row_of(model, layer).activation.replace("{layer}", str(layer))
        )
        hook = module.register_forward_hook(lambda _m, _a, out, to=seen: to.append(out.flatten()))
        with torch.no_grad():
            for text in texts:
                model(input_ids=torch.tensor([text.ids]))
        hook.remove()
        values = torch.cat(seen).abs().sort().values
        ranks = (torch.linspace(0, 1, 1001, dtype=torch.float64) * (len(values) - 1)).round()
        # A bin is 1/512 of its value wide; float32 sums of batches differ in the last digits.
        torch.testing.assert_close(
            slots[layer]["quantiles"], values[ranks.long()], rtol=1 / 400, atol=1e-6
        )


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", BRICKS)
def test_every_training_gives_a_brick_that_fits(family: str, kind: str, tmp_path: Path) -> None:
    base, texts = loaded(family), sequences(family)
    before = {k: v.clone() for k, v in base.model.state_dict().items()}
    recipe = RouterRecipe(density=0.4, batch=64, data="letters")

    def train() -> object:
        return train_router(
            base, kind, sequences=texts, partition=partition_for(kind, family), recipe=recipe,
            generator=chance(),
        )  # fmt: skip

    brick = train()
    assert brick == train()  # equal seeds, equal bits
    assert len(effects_of(brick)) == len(dense_layers(base.model)) == len(brick.spec.sites)
    assert brick.spec.options == {"density": 0.4, "level": "token"}
    assert brick.spec.lineage.data == "letters"
    assert brick.spec.lineage.arguments["training"] == kind
    write_brick(brick, tmp_path / "brick")
    assert read_brick(tmp_path / "brick") == brick
    assert all(torch.equal(before[k], v) for k, v in base.model.state_dict().items())
    assert all(p.grad is None for p in base.model.parameters())
    routes = {base.base.sites[e.site].layer: e for e in effects_of(brick)}
    held_out = split_sequences(texts, recipe.held_out, chance())[1]
    expected = captured_energy(base.model, routes, held_out)
    assert brick.spec.metrics[0].after == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("family", FAMILIES[:5])
@pytest.mark.parametrize("level", ["token", "prompt"])
@torch.no_grad()
def test_captured_energy_is_that_of_a_slow_loop(family: str, level: Level) -> None:
    base, texts = loaded(family), sequences(family)[:7]
    for kind in ("threshold", "magnitude", "centroid"):
        slots = train_slots(
            base, [(kind, partition_for(kind, family))], sequences=texts, recipe=RouterRecipe(),
            generator=chance(),
        )[0]  # fmt: skip
        routes = routes_of(base.model, slots, RouterRecipe(density=0.3, level=level))
        reads = "gate" if kind == "threshold" else "activation"
        shares = [
            share
            for text in texts
            for layer, route in routes.items()
            for share in shares_kept(family, text, layer, (route, reads))
        ]
        found = captured_energy(base.model, routes, texts)
        assert found == pytest.approx(sum(shares) / len(shares), abs=1e-4)  # float32 in batches


def shares_kept(family: str, text: Encoded, layer: int, chosen: tuple[Route, Reads]) -> list[float]:
    """Of one text alone, by token, or of its response by its prompt."""
    route, reads = chosen
    model = loaded(family).model
    x, h = input_and_activations(family, text, layer)
    read = reading(reads, dense_ffn(model, layer), x)
    energy = (h * output_norms(model, layer)) ** 2
    keep = kept(route, x, read)
    if route.level == "prompt":
        own = slice(0, text.response_start)
        said = read()[own]
        keep = prompt_kept(route, x[own], lambda: said)
        energy = energy[text.response_start :]
    shares: list[float] = ((energy * keep).sum(1) / energy.sum(1)).tolist()
    return shares


def input_and_activations(family: str, text: Encoded, layer: int) -> tuple[Tensor, Tensor]:
    """By the norm before the FFN, through an FFN computed from the weights alone."""
    model = loaded(family).model
    ffn, seen = dense_ffn(model, layer), []
    first = {"gpt2": f"transformer.h.{layer}.mlp", "opt": f"model.decoder.layers.{layer}.fc1"}
    module = model.get_submodule(first.get(family, f"model.layers.{layer}.mlp"))
    hook = module.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    model(input_ids=torch.tensor([text.ids]))
    hook.remove()
    x = seen[0].reshape(-1, 32)
    return x, ffn.activations(x)


def test_energy_kept_is_1_where_there_is_none() -> None:
    keep = torch.tensor([[True, False], [True, False]])
    h = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    assert energy_kept(keep, h, torch.tensor([1.0, 1.0])).tolist() == [1.0, pytest.approx(9 / 25)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_centroids_are_those_of_a_slow_loop(family: str) -> None:
    model = loaded(family).model
    ffn, owner = dense_ffn(model, 1), partition(family).owners[1]
    rows = (ffn.up if ffn.gate is None else ffn.gate).detach()
    norms = output_norms(model, 1)
    plain, weighted = torch.zeros(GROUPS, 32), torch.zeros(GROUPS, 32)
    for i, group in enumerate(owner.tolist()):
        plain[group] += rows[i] / rows[i].norm()
        loud = float(norms[i]) * (1 if ffn.gate is None else float(ffn.up[i].detach().norm()))
        weighted[group] += rows[i] * loud
    # float32 sums in another order
    torch.testing.assert_close(centroids(ffn, owner), plain / plain.norm(dim=1, keepdim=True))
    found = weighted_centroids(ffn, owner, norms)
    torch.testing.assert_close(found, weighted / weighted.norm(dim=1, keepdim=True))


def planted(recipe: RouterRecipe) -> Place:
    """An FFN whose neurons of a group listen to one direction, and to much else besides.

    Some groups are louder than others, which their directions do not tell.
    """
    owner = torch.arange(64) % 8
    directions = torch.randn(8, 16, generator=chance(1))
    gate = directions[owner] + 0.7 * torch.randn(64, 16, generator=chance(2))
    up, down = torch.randn(64, 16, generator=chance(3)), torch.randn(16, 64, generator=chance(4))
    down *= (1 + owner) / 4
    ffn = FFN(torch.nn.functional.silu, up, down, gate=gate)
    return Place(ffn, down.norm(dim=0), owner, recipe)


def captured(place: Place, slots: dict[str, Tensor], density: float = 0.25) -> float:
    """On tokens of another seed."""
    x = torch.randn(600, 16, generator=chance(9))
    groups = groups_kept(group_scores(slots, x), place.groups, density)
    keep = neurons_of(groups, place.groups)
    return float(energy_kept(keep, place.ffn.activations(x), place.norms).mean())


def taught(learner: Learner, place: Place, steps: int = 12) -> dict[str, Tensor]:
    for step in range(steps):
        x = torch.randn(512, 16, generator=chance(100 + step))
        learner.see(x, place.ffn.activations(x), step / steps)
    return learner.slots()


@pytest.mark.parametrize("make", [gate_scorer, mlp_scorer])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_captures_more_than_centroids_and_they_more_than_chance(
    make: object, objective: str
) -> None:
    place = planted(RouterRecipe(objective=objective, batch=64, density=0.25))
    owner = place.groups.float()
    random = captured(place, {"owner": owner, "weight": torch.randn(8, 16, generator=chance(5))})
    similar = captured(place, {"owner": owner, "weight": centroids(place.ffn, place.groups)})
    trained = captured(place, taught(make(place), place))  # type: ignore[operator]
    assert trained > similar + 0.02
    assert similar > random + 0.1


def test_the_truth_is_an_upper_bound() -> None:
    place = planted(RouterRecipe(batch=64))
    slots = taught(gate_scorer(place), place)
    x = torch.randn(600, 16, generator=chance(9))
    h = place.ffn.activations(x)
    best = groups_kept(truth_scores(h, place.norms, place.groups), place.groups, 0.25)
    bound = energy_kept(neurons_of(best, place.groups), h, place.norms).mean()
    assert float(bound) >= captured(place, slots)


def test_a_learned_router_does_not_depend_on_the_scale_of_its_input() -> None:
    one, other = planted(RouterRecipe(batch=64)), planted(RouterRecipe(batch=64))
    ones, others = gate_scorer(one), gate_scorer(other)
    for step in range(4):
        x = torch.randn(512, 16, generator=chance(step))
        h = one.ffn.activations(x)
        ones.see(x, h, step / 4)
        others.see(64 * x, h, step / 4)  # a power of two, so that nothing is rounded
    torch.testing.assert_close(ones.slots()["weight"], 64 * others.slots()["weight"])


def test_the_balance_loss_is_switchs() -> None:
    scores = torch.randn(40, 5, generator=chance())
    chosen = scores == scores.amax(1, keepdim=True)
    often = [float(chosen[:, g].sum()) / 40 for g in range(5)]
    expected = [float(scores.softmax(1)[:, g].mean()) for g in range(5)]
    slow = 5 * sum(f * p for f, p in zip(often, expected, strict=True))
    assert float(balance_loss(scores, chosen)) == pytest.approx(slow, rel=1e-5)
    even = torch.eye(5, dtype=torch.bool)
    assert float(balance_loss(torch.zeros(5, 5), even)) == pytest.approx(1)
    one = torch.tensor([[9.0, 0, 0, 0, 0]]).expand(7, 5)
    assert float(balance_loss(one, one > 0)) > 4.9


def test_balance_spreads_the_tokens() -> None:
    def unevenness(balance: float) -> float:
        place = planted(RouterRecipe(batch=64, density=0.25, balance=balance))
        place.norms[place.groups == 0] *= 6  # one group that everybody wants
        slots = taught(gate_scorer(place), place)
        x = torch.randn(600, 16, generator=chance(9))
        groups = groups_kept(group_scores(slots, x), place.groups, 0.25)
        return float(groups.float().mean(0).std())

    assert unevenness(3.0) < 0.7 * unevenness(0.0)


def test_the_fixed_control_is_the_mean_share() -> None:
    base, texts = loaded("llama"), sequences("llama")
    slots = train_slots(
        base, [("fixed", partition("llama"))], sequences=texts, recipe=RouterRecipe(),
        generator=chance(),
    )[0]  # fmt: skip
    total = torch.zeros(GROUPS)
    with torch.no_grad():
        for text in texts:
            _, h = input_and_activations("llama", text, 1)
            energy = (h * output_norms(base.model, 1)) ** 2
            by_group = torch.stack([energy[:, g::GROUPS].sum(1) for g in range(GROUPS)], 1)
            total += (by_group / by_group.sum(1, keepdim=True)).sum(0)
    torch.testing.assert_close(slots[1]["scores"], total, rtol=1e-4, atol=1e-4)


def train(kind: str, family: str = "llama", **how: object) -> object:
    arguments: dict[str, object] = {
        "sequences": sequences(family), "partition": None, "recipe": RouterRecipe(),
        "generator": chance(),
    }  # fmt: skip
    return train_router(loaded(family), kind, **{**arguments, **how})  # type: ignore[arg-type]


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="no training of a router is called 'gat'; did you"):
        train("gat")
    with pytest.raises(UnknownNameError, match="objective of a router is called 'shar'; did you"):
        train("gate", partition=partition("llama"), recipe=RouterRecipe(objective="shar"))


def test_a_control_makes_no_brick() -> None:
    with pytest.raises(ConfigurationError, match=r"'fixed' is a control .* choose one of thr"):
        train("fixed", partition=partition("llama"))


def test_a_partition_is_asked_for_where_it_is_needed_and_nowhere_else() -> None:
    with pytest.raises(ConfigurationError, match="'gate' chooses groups, but no partition"):
        train("gate")
    with pytest.raises(ConfigurationError, match="'threshold' chooses single neurons; leave"):
        train("threshold", partition=partition("llama"))


def test_a_partition_of_another_model_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"\(planted\) that is not of this model"):
        train("gate", partition=partition("phi3"))
    mine = partition("llama")
    short = Partition(mine.spec, {0: torch.arange(24) % GROUPS})
    with pytest.raises(ConfigurationError, match="layer 0 has 48 neurons, it has 24") as caught:
        train("centroid", partition=short)
    assert "it has no groups for layer 1" in str(caught.value)


def test_a_model_of_experts_alone_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="all 2 FFNs of this mixtral model are mixtures"):
        train("threshold", "mixtral")
    assert dense_layers(loaded("qwen3_moe").model) == [0]


def test_too_little_data_is_refused() -> None:
    with pytest.raises(DataError, match="there are 1; give at least 2"):
        train("threshold", sequences=sequences("llama")[:1])
    bare = [Encoded(s.ids, len(s.ids)) for s in sequences("llama")[:4]]
    with pytest.raises(DataError, match="no token that counts; give sequences with responses"):
        train("magnitude", sequences=bare, recipe=RouterRecipe(level="prompt"))
