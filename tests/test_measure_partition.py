"""Partitions: the laws of the table in every family, profiles, bricks, and what is refused."""

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from brickwork.brick.check import misfits
from brickwork.brick.forms import load_target
from brickwork.brick.partition import SHARED, Partition, read_partition, write_partition
from brickwork.errors import BrickworkError, ConfigurationError, DataError, UnknownNameError
from brickwork.measure.batch import RunningBatch
from brickwork.measure.coactivation import PairsInside
from brickwork.measure.evidence import Evidence
from brickwork.measure.groups import best_functions, group_bricks
from brickwork.measure.instances import encode_instances
from brickwork.measure.labelled import load_labelled
from brickwork.measure.partition import PARTITIONS, divisions, head_groups, make_partition
from brickwork.measure.profiles import group_means, read_scores, split_by_function
from brickwork.measure.results import FILE
from brickwork.model.ffn import FFN, ffn_of
from brickwork.model.heads import heads_of
from brickwork.model.load import LoadedModel, load_model, wrap_model
from brickwork.model.parts import layers_of
from brickwork.model.taps import NeuronTap, tapped
from brickwork.model.units import unit_counts
from brickwork.reference.paths import model_folder, resolve_data
from tests.analysis import synthetic_analysis
from tests.study import labelled
from tests.test_measure_activations import slow_activations
from tests.tiny import FAMILIES, tiny_model, tiny_tokenizer

FUNCTIONS = ("Coding", "Math", "Writing")
INSTANCES = tuple(labelled(per_function=4))
MOE = ("mixtral", "qwen3_moe")
GROUPS = 8
CASES = [
    (method, family)
    for method, row in PARTITIONS.items()
    for family in FAMILIES
    if family in MOE or not row.native
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@cache
def loaded(family: str) -> LoadedModel:
    return wrap_model(tiny_model(family), tiny_tokenizer(), f"tiny-{family}")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("analyses")


def analysis_of(family: str, place: Path) -> Path:
    """An analysis of random numbers that says it is of this model."""
    folder, model = place / family, loaded(family)
    if folder.exists():
        return folder
    folder.mkdir()
    found = synthetic_analysis(layers_of(model.model), FUNCTIONS)
    facts = found.model.model_copy(update={"fingerprint": model.base.fingerprint.weights})
    text = found.model_copy(update={"model": facts}).model_dump_json()
    (folder / FILE).write_text(text, encoding="utf-8")
    tensors: dict[str, Tensor] = {}
    for layer in range(layers_of(model.model)):
        neurons = unit_counts(model.model, layer)["mlp.neurons"]
        for word in ("activation", "selectivity"):
            scores = torch.rand(neurons, len(FUNCTIONS), generator=seeded(layer))
            scores[: 2 if word == "selectivity" else 0] = -torch.inf
            tensors[f"layers.{layer}.mlp.neurons.{word}"] = scores
    save_file(tensors, folder / "scores.safetensors")
    return folder


def made(method: str, family: str, place: Path, *, seed: int = 0, shared: float = 0.0) -> Partition:
    row = PARTITIONS[method]
    needs_data = row.needs == "activations"
    needs_analysis = row.needs == "analysis" or (shared > 0 and not needs_data)
    evidence = Evidence(
        INSTANCES if needs_data else (),
        "letters" if needs_data else "",
        analysis_of(family, place) if needs_analysis else None,
    )
    groups = None if row.native else GROUPS
    return make_partition(
        loaded(family), method, groups=groups, shared=shared, seed=seed, evidence=evidence
    )


@pytest.mark.parametrize(("method", "family"), CASES)
def test_every_neuron_is_in_one_group_of_equal_size(
    method: str, family: str, place: Path, tmp_path: Path
) -> None:
    shared = 0.0 if PARTITIONS[method].native else 0.1
    partition, model = made(method, family, place, shared=shared), loaded(family).model
    for layer, owners in partition.owners.items():
        ffn = ffn_of(model, layer)
        experts = [ffn] if isinstance(ffn, FFN) else list(ffn.experts)
        groups = len(experts) if PARTITIONS[method].native else GROUPS
        assert owners.shape == (sum(expert.neurons for expert in experts),)
        assert owners.dtype == torch.int32
        assert partition.groups(layer) == groups
        everyone = torch.cat([*partition.members(layer), partition.shared(layer)])
        assert torch.equal(everyone.sort().values, torch.arange(len(owners)))
        assert len({len(members) for members in partition.members(layer)}) == 1
        # No group mixes experts, and all experts share equally many.
        by_expert = owners.view(len(experts), -1)
        assert len({int((own == SHARED).sum()) for own in by_expert}) == 1
        assert (by_expert[0] == SHARED).float().mean() >= shared
        each = groups // len(experts)
        for expert, own in enumerate(by_expert):
            assert set(own[own >= 0].tolist()) == set(range(expert * each, (expert + 1) * each))
    write_partition(partition, tmp_path / "partition")
    assert read_partition(tmp_path / "partition").hash == partition.hash


@pytest.mark.parametrize(("method", "family"), CASES)
def test_equal_seeds_give_equal_groups(method: str, family: str, place: Path) -> None:
    first, again = made(method, family, place), made(method, family, place)
    assert first.hash == again.hash
    for layer, owners in first.owners.items():
        assert torch.equal(owners, again.owners[layer])


@pytest.mark.parametrize("family", FAMILIES)
def test_another_seed_gives_other_random_groups(family: str, place: Path) -> None:
    first, other = made("random", family, place), made("random", family, place, seed=1)
    assert not any(torch.equal(first.owners[n], other.owners[n]) for n in first.owners)
    assert not torch.equal(first.owners[0], first.owners[1])


@pytest.mark.parametrize(("method", "family"), CASES)
def test_neurons_in_the_order_of_their_groups_compute_the_same(
    method: str, family: str, place: Path
) -> None:
    partition, model = made(method, family, place), loaded(family).model
    x = torch.randn(5, model.config.get_text_config().hidden_size, generator=seeded())
    for layer, owners in partition.owners.items():
        ffn = ffn_of(model, layer)
        experts = [ffn] if isinstance(ffn, FFN) else list(ffn.experts)
        for own, expert in zip(owners.view(len(experts), -1), experts, strict=True):
            ordered = permuted(expert, own.argsort(stable=True))
            # The same terms, summed in another order, in float32.
            torch.testing.assert_close(ordered(x), expert(x), rtol=1e-4, atol=1e-4)


def permuted(ffn: FFN, order: Tensor) -> FFN:
    def rows(of: Tensor | None) -> Tensor | None:
        return None if of is None else of[order]

    return FFN(
        ffn.activation, ffn.up[order], ffn.down[:, order], gate=rows(ffn.gate),
        up_bias=rows(ffn.up_bias), down_bias=ffn.down_bias, gate_bias=rows(ffn.gate_bias),
    )  # fmt: skip


def test_rows_of_the_table_name_what_they_are() -> None:
    for name, row in PARTITIONS.items():
        assert name == row.name
        assert callable(load_target(row.target))
        assert row.meaning


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "mixtral"])
def test_planted_weights_are_found(family: str) -> None:
    model = wrap_model(tiny_model(family))
    hidden = model.model.config.get_text_config().hidden_size
    directions = 5 * torch.randn(4, hidden, generator=seeded())
    truth = torch.randperm(48, generator=seeded(1)) % 4
    ffn = ffn_of(model.model, 1)
    experts = [ffn] if isinstance(ffn, FFN) else ffn.experts
    with torch.no_grad():
        for expert in experts:
            (expert.up if expert.gate is None else expert.gate).add_(directions[truth])
    owners = make_partition(model, "clustering", groups=4 * len(experts)).owners[1]
    for own in owners.view(len(experts), -1):
        assert all(len(set(own[truth == group].tolist())) == 1 for group in range(4))


def test_layers_without_experts_are_left_out_of_native_ones(place: Path) -> None:
    assert list(made("experts", "qwen3_moe", place).owners) == [1]
    owners = made("experts", "mixtral", place).owners[0]
    assert owners.tolist() == [neuron // 48 for neuron in range(4 * 48)]


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_go_together_by_what_they_read(family: str) -> None:
    model = loaded(family).model
    heads, groups = heads_of(model.config, 0), head_groups(model, 0)
    assert len(groups) == heads.kv_heads
    assert torch.cat(groups).tolist() == list(range(heads.heads))
    for kv, group in enumerate(groups):
        assert [head // heads.group for head in group.tolist()] == [kv] * heads.group


def test_the_most_active_neurons_are_shared() -> None:
    model = wrap_model(tiny_model("llama"), tiny_tokenizer(), "tiny")
    loud = torch.tensor([3, 17, 21, 30, 40, 41, 45, 47])
    ffn = ffn_of(model.model, 0)
    assert isinstance(ffn, FFN)
    with torch.no_grad():
        ffn.down[:, loud] *= 1000
    partition = make_partition(
        model, "random", groups=8, shared=0.1, evidence=Evidence(INSTANCES, "letters")
    )
    assert len(set(partition.shared(0).tolist()) & set(loud.tolist())) >= 5  # 4.8 fire at a token


def test_the_residents_of_an_analysis_are_shared_first(place: Path) -> None:
    partition = made("clustering", "llama", place, shared=0.1)
    assert partition.shared(0)[:2].tolist() == [0, 1]
    assert partition.spec.arguments["shared"] == 0.1


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3_moe"])
def test_a_profile_from_labels_is_that_of_a_slow_loop(family: str) -> None:
    model = loaded(family)
    evidence = Evidence(INSTANCES, "letters")
    partition = make_partition(model, "random", groups=GROUPS, evidence=evidence)
    assert partition.spec.functions == FUNCTIONS
    assert partition.spec.data == "letters"
    sequences = encode_instances(model, INSTANCES, 64).sequences
    means: dict[str, list[Tensor]] = {name: [] for name in FUNCTIONS}
    for instance, sequence in zip(INSTANCES, sequences, strict=True):
        assert sequence is not None
        said = slow_activations(model.model, 1, sequence)[: sequence.response_start]
        means[instance.functionality].append(said.abs().mean(0))
    by_function = torch.stack([torch.stack(rows).mean(0) for rows in means.values()], dim=1)
    relative = (by_function / by_function.mean(1, keepdim=True)).nan_to_num(1.0)
    for group, members in enumerate(partition.members(1)):
        expected = relative[members].mean(0)
        torch.testing.assert_close(partition.profile[1][group], expected, rtol=1e-3, atol=1e-4)


def test_a_profile_from_an_analysis_is_the_mean_score(place: Path) -> None:
    partition = made("functionality", "llama", place)
    scores = read_scores(analysis_of("llama", place), loaded("llama")).activation[1]
    for group, members in enumerate(partition.members(1)):
        torch.testing.assert_close(partition.profile[1][group], scores[members].mean(0))
    assert partition.spec.functions == FUNCTIONS


@pytest.mark.parametrize(("groups", "bundles"), [(4, 4), (8, 4), (2, 2), (1, 1), (16, 4)])
def test_neurons_of_one_functionality_go_together(groups: int, bundles: int) -> None:
    truth = torch.randperm(64, generator=seeded()) % 4
    scores = 0.1 * torch.rand(64, 4, generator=seeded(1))
    scores[torch.arange(64), truth] += 0.5
    scores[:, 3] *= 3  # the scale of a functionality says nothing
    owners = split_by_function(scores, groups)
    assert torch.bincount(owners).tolist() == [64 // groups] * groups
    for group in range(groups):
        assert len(truth[owners == group].unique()) == 4 // bundles


def test_the_best_of_a_functionality_come_first() -> None:
    scores = torch.rand(24, 1, generator=seeded())
    owners = split_by_function(scores, 3)
    assert scores[owners == 0].min() > scores[owners == 1].max()
    assert scores[owners == 1].min() > scores[owners == 2].max()


def test_group_means_leave_the_shared_out() -> None:
    values = torch.tensor([[1.0], [2.0], [3.0], [100.0]])
    owners = torch.tensor([0, 1, 0, SHARED], dtype=torch.int32)
    assert group_means(values, owners).tolist() == [[2.0], [2.0]]


@pytest.mark.parametrize("family", FAMILIES)
def test_groups_are_bricks_that_fit_and_together_keep_everything(family: str, place: Path) -> None:
    model, partition = loaded(family), made("functionality", family, place, shared=0.1)
    bricks = list(group_bricks(partition, model))
    assert len(bricks) == GROUPS * len(partition.owners)
    assert bricks[GROUPS + 3].spec.name == "layer-1-group-3"
    assert not [problem for brick in bricks for problem in misfits(brick, model.base)]
    for layer in partition.owners:
        own = bricks[layer * GROUPS : (layer + 1) * GROUPS]
        kept = torch.stack([next(iter(brick.tensors.values())) for brick in own])
        always = torch.zeros(kept.shape[1])
        always[partition.shared(layer)] = 1
        assert torch.equal(kept.amin(0), always)
        assert kept.amax(0).min() == 1
        labels = [name for brick in own for name in brick.spec.function.labels]
        assert labels == best_functions(partition, layer)


def test_bricks_of_another_model_are_refused(place: Path) -> None:
    partition = made("random", "llama", place)
    with pytest.raises(ConfigurationError, match=r"'tiny-llama'.*make a partition of this model"):
        next(group_bricks(partition, loaded("mistral")))


@pytest.mark.parametrize(
    ("method", "family", "groups", "shared", "kind", "words"),
    [
        ("clustring", "llama", 8, 0.0, UnknownNameError, "did you mean 'clustering'"),
        (
            "random",
            "llama",
            5,
            0.0,
            ConfigurationError,
            "48 neurons of layer 0.*are 2, 3, 4, 6, 8,",
        ),
        ("random", "llama", None, 0.0, ConfigurationError, "give at least one group"),
        ("random", "llama", 8, 1.0, ConfigurationError, "below 1"),
        ("random", "llama", 48, 0.1, ConfigurationError, "counts that work"),
        ("random", "mixtral", 6, 0.0, ConfigurationError, "4 experts.*multiple, 4 or 8"),
        ("experts", "llama", None, 0.0, ConfigurationError, "no experts.*another method"),
        ("experts", "mixtral", 8, 0.0, ConfigurationError, "4 experts.*leave groups"),
        ("experts", "mixtral", 4, 0.1, ConfigurationError, "share out"),
        ("coactivation", "llama", 8, 0.0, DataError, "needs activations.*--data"),
        ("functionality", "llama", 8, 0.0, DataError, "needs analysis.*--analysis"),
        ("random", "llama", 8, 0.1, DataError, "neither data nor an analysis"),
    ],
)
def test_what_cannot_be_done_is_refused(
    method: str, family: str, groups: int | None, shared: float, kind: type[BrickworkError],
    words: str,
) -> None:  # fmt: skip
    with pytest.raises(kind, match=words):
        make_partition(loaded(family), method, groups=groups, shared=shared)


def test_counts_that_are_named_work() -> None:
    for groups in (2, 3, 4, 6, 8):
        division = divisions(loaded("llama").model, "random", groups, 0.0)[0]
        assert division.size * groups == 48
    division = divisions(loaded("llama").model, "random", 5, 0.05)[0]
    assert (division.shared, division.size) == (3, 9)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / FILE).unlink(), "no whole analysis"),
        (lambda folder: (folder / FILE).write_text("{}"), "is not an analysis"),
        (lambda folder: (folder / "scores.safetensors").write_bytes(b"x" * 20), "no whole"),
        (
            lambda folder: save_file({"a": torch.ones(1)}, folder / "scores.safetensors"),
            "should hold 'layers.0.mlp.neurons.activation' of size .48, 3., but it is missing",
        ),
    ],
    ids=["none", "no document", "damaged", "other"],
)
def test_analyses_that_are_not_whole_are_refused(
    damage: object, words: str, tmp_path: Path
) -> None:
    folder = analysis_of("llama", tmp_path)
    assert callable(damage)
    damage(folder)
    with pytest.raises(DataError, match=words):
        read_scores(folder, loaded("llama"))


def test_an_analysis_of_another_model_is_refused(place: Path) -> None:
    with pytest.raises(DataError, match=r"not of this model .*; analyse this one"):
        read_scores(analysis_of("llama", place), loaded("mistral"))


def test_instances_that_are_all_cut_away_are_refused() -> None:
    with pytest.raises(DataError, match="none of 12 instances has a prompt and a response"):
        make_partition(
            loaded("llama"), "coactivation", groups=8, evidence=Evidence(INSTANCES, longest=1)
        )


@pytest.mark.slow
def test_on_the_reference_model_groups_hold_what_is_active_together() -> None:
    reference = load_model(str(model_folder()), dtype="float32")
    found = load_labelled(resolve_data("reference"), per_function=24).instances
    evidence, held_out = Evidence(found[::2], "probe"), found[1::2]
    owners = {
        method: make_partition(reference, method, groups=16, evidence=evidence).owners
        for method in ("random", "clustering", "coactivation")
    }
    running = RunningBatch()
    judges = {name: PairsInside(reference.model, running, own) for name, own in owners.items()}
    taps = [judge.taps() for judge in judges.values()]
    every: dict[int, NeuronTap] = {
        layer: lambda h, routed, layer=layer: [tap[layer](h, routed) for tap in taps] and None
        for layer in range(layers_of(reference.model))
    }
    with tapped(reference.model, neurons=every), torch.inference_mode():
        for sequence in filter(None, encode_instances(reference, held_out, 256).sequences):
            running.tokens = torch.ones(1, len(sequence.ids), dtype=torch.bool)
            reference.model.base_model(input_ids=torch.tensor([sequence.ids]), use_cache=False)
    shares = {name: sum(judge.shares().values()) / 8 for name, judge in judges.items()}
    chance = judges["random"].chances()[0]
    assert shares["random"] == pytest.approx(chance, rel=0.02)  # 8 layers' mean
    assert chance * 1.02 < shares["clustering"] < shares["coactivation"]
    assert shares["coactivation"] > 1.2 * chance
