"""Comparison of routers: losses of masked models, bounds and controls, and what is refused."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from brickwork.brick.effects import Route
from brickwork.brick.partition import Partition
from brickwork.errors import ConfigurationError, DataError, UnknownNameError
from brickwork.measure.instances import encode_instances
from brickwork.measure.selection_results import RouterQuality, RouterRow
from brickwork.model.taps import output_norms
from brickwork.route.router_controls import CONTROLS, Controlled
from brickwork.route.router_learners import RouterRecipe
from brickwork.route.router_passes import dense_ffn, dense_layers, shown
from brickwork.route.router_quality import (
    KINDS,
    Contest,
    Trial,
    compare_routers,
    write_quality,
)
from brickwork.route.router_training import TRAININGS
from brickwork.route.routers import kept
from tests.served import loaded
from tests.study import labelled
from tests.test_route_router_training import partition

FAMILIES = ("llama", "gpt2", "opt", "phi3", "gemma3_text", "qwen3_moe")


@cache
def trial(family: str) -> Trial:
    instances = labelled(16)
    found = encode_instances(loaded(family), instances, 64).sequences
    pairs = [(i.functionality, s) for i, s in zip(instances, found, strict=True) if s is not None]
    return Trial(
        training=[s for n, (_, s) in enumerate(pairs) if n % 4],
        evaluation=[s for _, s in pairs[::4]],
        functions=[f for f, _ in pairs[::4]],
        data="letters",
    )


def compare(family: str, contest: Contest, *partitions: Partition, seed: int = 0) -> RouterQuality:
    return compare_routers(
        loaded(family), partitions, contest=contest, trial=trial(family),
        recipe=RouterRecipe(batch=64), seed=seed,
    )  # fmt: skip


@cache
def everything(family: str) -> RouterQuality:
    contest = Contest(densities=(0.5, 1.0), levels=("token", "prompt"))
    return compare(family, contest, partition(family))


def row_of(quality: RouterQuality, router: str, density: float, level: str = "token") -> RouterRow:
    (row,) = [r for r in quality.rows if (r.router, r.density, r.level) == (router, density, level)]
    return row


@pytest.mark.parametrize("family", FAMILIES)
def test_all_routers_and_controls_are_compared(family: str) -> None:
    found = everything(family)
    by_both = [kind for kind in KINDS if kind not in CONTROLS]
    assert {r.router for r in found.rows} == set(KINDS)
    assert len(found.rows) == 2 * (2 * len(by_both) + len(CONTROLS))
    assert set(found.base_losses) == {"Coding", "Math", "Writing"}
    assert found.instances == len(trial(family).evaluation)
    for row in found.rows:
        grouped = row.router in CONTROLS or TRAININGS[row.router].grouped
        assert (row.partition, row.groups) == (("planted", 6) if grouped else ("", 0))
        assert set(row.losses) == set(found.base_losses)
        assert row.cost > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_density_1_is_the_whole_model(family: str) -> None:
    found = everything(family)
    for row in found.rows:
        if row.density == 1:
            assert row.losses == pytest.approx(found.base_losses, abs=1e-6)
            assert row.kept == 1
            # Energies are summed in two ways.
            assert row.captured == pytest.approx(1, abs=1e-6)
            assert row.cost >= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_truth_captures_most_of_all_that_choose_groups(family: str) -> None:
    found = everything(family)
    truth = row_of(found, "truth", 0.5)
    for kind in ("random", "hash", "fixed", "similarity", "centroid", "gate", "mlp"):
        assert row_of(found, kind, 0.5).captured <= truth.captured + 1e-6
    assert row_of(found, "magnitude", 0.5).captured >= truth.captured
    assert row_of(found, "random", 0.5).captured < row_of(found, "gate", 0.5).captured


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "phi3", "gemma3_text"])
@torch.no_grad()
def test_the_loss_is_that_of_the_model_with_neurons_silenced(family: str) -> None:
    """By hooks on the output projections, one text at a time, all logits computed."""
    base, texts = loaded(family), trial(family)
    model = base.model
    hooks = []
    for n in dense_layers(model):
        (site,) = [s for s in base.base.sites.values() if s.address == f"layers.{n}.mlp.down"]
        route = Route(site.path, {"magnitude": output_norms(model, n)}, 0.5, "token")

        def silence(_module: object, args: tuple[Tensor, ...], route: Route = route) -> tuple:  # type: ignore[type-arg]
            h = args[0].flatten(0, -2)
            keep = kept(route, h, lambda: h)
            return ((h * keep).view_as(args[0]),)

        hooks.append(model.get_submodule(site.path).register_forward_pre_hook(silence))
    nats: dict[str, list[float]] = {}
    for text, function in zip(texts.evaluation, texts.functions, strict=True):
        ids = torch.tensor([text.ids])
        told = model(input_ids=ids).logits[0].log_softmax(-1)
        nats.setdefault(function, []).extend(
            -float(told[t - 1, text.ids[t]]) for t in range(text.response_start, len(text.ids))
        )
    for hook in hooks:
        hook.remove()
    expected = {function: sum(own) / len(own) for function, own in nats.items()}
    found = row_of(everything(family), "magnitude", 0.5).losses
    assert found == pytest.approx(expected, abs=1e-4)  # float32 in batches


def test_by_prompt_the_density_is_that_of_the_responses() -> None:
    found = everything("llama")
    assert row_of(found, "magnitude", 0.5, "prompt").kept == pytest.approx(0.5)
    row = row_of(found, "gate", 0.5, "prompt")
    assert row.cost == pytest.approx(row.kept)
    assert row.losses != row_of(found, "gate", 0.5).losses


def test_the_cost_counts_the_router() -> None:
    found, ffn = everything("llama"), dense_ffn(loaded("llama").model, 0)
    dense = 3 * 32 * ffn.neurons
    gate, mlp = row_of(found, "gate", 0.5), row_of(found, "mlp", 0.5)
    assert gate.cost == pytest.approx(gate.kept + 6 * 32 / dense)
    assert mlp.cost == pytest.approx(mlp.kept + (6 * 32 + 6 * 6) / dense)
    threshold = row_of(found, "threshold", 0.5)
    assert threshold.cost == pytest.approx((1 + 2 * threshold.kept) / 3)
    assert row_of(found, "random", 0.5).cost == row_of(found, "random", 0.5).kept


def test_equal_seeds_give_equal_results_and_others_others() -> None:
    contest = Contest(("random", "gate"), (0.5,))
    one, two = (compare("llama", contest, partition("llama")) for _ in range(2))
    assert one == two
    assert compare("llama", contest, partition("llama"), seed=1).rows != one.rows


def test_partitions_stand_beside_each_other() -> None:
    mine = partition("llama")
    spec = mine.spec.model_copy(update={"method": "coarse"})
    coarse = Partition(spec, {n: torch.arange(48) % 3 for n in mine.owners})
    found = compare("llama", Contest(("truth", "threshold"), (0.5,)), mine, coarse)
    rows = [(r.partition, r.groups, r.router) for r in found.rows]
    assert rows == [("", 0, "threshold"), ("planted", 6, "truth"), ("coarse", 3, "truth")]


def test_a_hash_keeps_the_same_groups_for_equal_tokens() -> None:
    text = trial("llama").evaluation[0]
    twice = type(text)(text.ids[:4] * 2, 4)
    batch = shown([twice], torch.device("cpu"))
    assert batch.ids.shape == (1, 8)
    assert batch.prompts.sum() == 4
    row = CONTROLS["hash"]
    known = Controlled(loaded("llama").model, partition("llama"), {}, torch.Generator())
    scores = row.scores(known, 0, torch.zeros(8, 48), batch)
    assert torch.equal(scores[:4], scores[4:])
    assert not torch.equal(scores, row.scores(known, 1, torch.zeros(8, 48), batch))


def test_the_result_is_written_and_read_again(tmp_path: Path) -> None:
    found = everything("llama")
    path = write_quality(found, tmp_path / "deep" / "out")
    assert path.name == "routers.json"
    assert RouterQuality.model_validate(json.loads(path.read_text())) == found


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="no kind of router or control is called 'gat'"):
        compare("llama", Contest(("gat",)))
    with pytest.raises(ConfigurationError, match=r"densities \[0.5, 1.5\]; give numbers above 0"):
        compare("llama", Contest(("threshold",), (0.5, 1.5)))
    with pytest.raises(ConfigurationError, match="gate, truth choose groups, but no partition"):
        compare("llama", Contest(("threshold", "gate", "truth")))
    with pytest.raises(ConfigurationError, match="is not of this model"):
        compare("llama", Contest(("truth",)), partition("phi3"))
    with pytest.raises(DataError, match="learn from 0 sequences and be measured on 0"):
        compare_routers(
            loaded("llama"), [], contest=Contest(("threshold",)), trial=Trial([], [], []),
            recipe=RouterRecipe(),
        )  # fmt: skip
