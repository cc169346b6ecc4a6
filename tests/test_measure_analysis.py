"""The whole analysis: every family, resumed, sharded, and honest about what it was made of."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from brickwork.errors import ConfigurationError, DataError, ModelError
from brickwork.measure import perplexity
from brickwork.measure.analysis import analyze_study, collect_activations
from brickwork.measure.instances import Instance
from brickwork.measure.passes import Passes
from brickwork.measure.perturbation import CONDITIONS, planned_passes
from brickwork.measure.results import Analysis, Settings
from brickwork.measure.study import open_study
from brickwork.model.load import wrap_model
from tests.served import loaded
from tests.study import LETTERS, SETTINGS, labelled, small_study
from tests.tiny import FAMILIES, tiny_model

# What a run says of itself, and not of the model.
OWN = {"seconds", "peak_memory"}


def told(analysis: Analysis) -> dict[str, Any]:
    return analysis.model_dump(exclude=OWN)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Analysis]:
    folder = tmp_path_factory.mktemp("llama")
    return folder, analyze_study(small_study(folder), command="brickwork analyze")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_analysed(family: str, tmp_path: Path) -> None:
    study = small_study(tmp_path, family)
    before = study.loaded.model(torch.arange(2, 20)[None]).logits
    analysis = analyze_study(study, command="brickwork analyze")
    assert torch.equal(study.loaded.model(torch.arange(2, 20)[None]).logits, before)
    assert set(analysis.perturbation.base) == set(LETTERS)
    assert len(analysis.functionality.neurons) == len(analysis.sparsity.layers) == 2
    assert Analysis.model_validate_json((tmp_path / "analysis.json").read_bytes()) == analysis
    scores = load_file(tmp_path / "scores.safetensors")
    for layer, neurons in enumerate(analysis.model.neurons):
        found = scores[f"layers.{layer}.mlp.neurons.activation"]
        assert found.shape == (neurons, 3)
        for number, name in enumerate(sorted(LETTERS)):
            own = analysis.functionality.neurons[layer].functions[name]
            assert own.best.value == pytest.approx(found[:, number].max().item(), abs=1e-6)
            assert found[own.best_unit, number] == found[:, number].max()


def test_letters_of_their_own_are_found(llama: tuple[Path, Analysis]) -> None:
    """Embeddings of disjoint letters: also random neurons tell the three apart, and stably so."""
    _, analysis = llama
    for layer in analysis.functionality.neurons:
        for scores in layer.functions.values():
            assert scores.best.low > scores.null.best_95
            assert scores.best_p == pytest.approx(1 / 5)  # better than all 4 permutations
            assert scores.other_half > scores.null.best_95
    by_name = {finding.name: finding for finding in analysis.findings}
    assert by_name["Functional neurons"].verdict == "holds"
    assert by_name["Not only the source"].verdict != "not measured"


def test_rows_of_an_ablation_are_what_was_taken_away(llama: tuple[Path, Analysis]) -> None:
    _, analysis = llama
    ablations = {a.name: a for a in analysis.perturbation.ablations}
    assert set(ablations) <= {condition.name for condition in CONDITIONS}
    zero = ablations["neurons-activation-zero"]
    names = [row.removed for row in zero.rows]
    assert names == [*sorted(LETTERS), "random 1", "random 2", "random 3"]
    assert {row.units for row in zero.rows} == {2 * int(0.1 * 48)}
    assert all(row.whole is not None for row in zero.rows)
    assert [row.removed for row in ablations["layers-each-skip"].rows] == ["layers.0", "layers.1"]
    assert all(row.units == 1 for row in ablations["heads-activation-zero"].rows)
    kinds = [row.kind for row in zero.rows]
    assert kinds == ["function"] * 3 + ["random"] * 3
    for masked in analysis.sparsity.masked:
        if masked.ratio == 0:
            assert masked.losses == {f: b.response for f, b in analysis.perturbation.base.items()}
            assert {rise.value for rise in masked.increase.values()} == {0.0}


def test_the_best_of_the_whole_model_can_be_taken_away(tmp_path: Path) -> None:
    analysis = analyze_study(small_study(tmp_path, scope="model"), command="x")
    zero = next(a for a in analysis.perturbation.ablations if a.name == "neurons-activation-zero")
    assert [row.units for row in zero.rows[:3]] == [int(0.1 * 96)] * 3
    like = [row.removed for row in zero.rows[3:]]
    assert like == ["random 1", "random 2", "random 3"] or like == [
        f"random like {name}" for name in sorted(LETTERS)
    ]


def test_equal_seeds_equal_results_and_other_seeds_others(
    llama: tuple[Path, Analysis], tmp_path: Path
) -> None:
    again = analyze_study(small_study(tmp_path / "a"), command="brickwork analyze")
    assert told(again) == told(llama[1])
    other = analyze_study(small_study(tmp_path / "b", seed=1), command="brickwork analyze")
    assert told(other)["perturbation"] != told(again)["perturbation"]


def test_a_second_run_takes_everything_from_the_folder(
    llama: tuple[Path, Analysis], monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the one pass of the whole model, which the means are counted in."""
    folder, first = llama
    passes: list[int] = []
    real = perplexity.token_losses

    def counting(model: Any, batch: Any, *, whole: bool) -> Any:
        passes.append(len(batch))
        return real(model, batch, whole=whole)

    monkeypatch.setattr(perplexity, "token_losses", counting)
    study = small_study(folder)
    again = analyze_study(study, command="brickwork analyze")
    assert told(again) == told(first)
    assert sum(passes) == len(study.evaluation.sequences)
    assert again.seconds["collect"] > first.seconds["collect"]  # times add up over runs


def test_a_damaged_result_is_made_anew(tmp_path: Path) -> None:
    first = analyze_study(small_study(tmp_path), command="x")
    for path in (tmp_path / "kept" / "losses").iterdir():
        path.write_bytes(path.read_bytes()[:20])
    assert told(analyze_study(small_study(tmp_path), command="x")) == told(first)


def test_shards_then_the_whole(tmp_path: Path, llama: tuple[Path, Analysis]) -> None:
    for k in (1, 2):
        collect_activations(small_study(tmp_path), shard=(k, 2))
    done = [path.name for path in (tmp_path / "rows").glob("done-*")]
    assert sorted(done) == ["done-1-of-2.npy", "done-2-of-2.npy"]
    assert told(analyze_study(small_study(tmp_path), command="brickwork analyze")) == told(llama[1])


def test_another_analysis_does_not_take_over_a_folder(tmp_path: Path) -> None:
    analyze_study(small_study(tmp_path), command="x")
    with pytest.raises(DataError, match="rows of another model, data set or setting"):
        analyze_study(small_study(tmp_path, seed=5), command="x")


def test_other_settings_take_over_the_rows_and_nothing_else(tmp_path: Path) -> None:
    first = analyze_study(small_study(tmp_path), command="x")
    rows = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").glob("neurons*")}
    other = analyze_study(small_study(tmp_path, permutations=7), command="x")
    assert {path: path.stat().st_mtime_ns for path in rows} == rows
    assert other.sparsity == first.sparsity
    scores = other.functionality.neurons[0].functions["Math"]
    assert scores.best_p == pytest.approx(1 / 8)


def test_a_model_that_differs_in_anything_takes_over_nothing(tmp_path: Path) -> None:
    """Also where the weights agree in bfloat16, or only the configuration differs."""
    before = small_study(tmp_path)
    keys = {before.model_key}
    for change in ("weight", "eps"):
        model = tiny_model("llama")
        if change == "weight":
            model.model.norm.weight.data[0] += 1e-6
        else:
            model.config.rms_norm_eps = 1e-4
        other = wrap_model(model, before.loaded.tokenizer)
        keys.add(open_study(other, labelled(), before.settings, tmp_path).model_key)
    assert len(keys) == 3


def test_losses_that_are_no_numbers_are_refused_before_they_are_kept(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.down_proj.weight.data.fill_(float("inf"))
    study = open_study(
        wrap_model(model, loaded("llama").tokenizer), labelled(), Settings(**SETTINGS), tmp_path
    )
    with pytest.raises(ModelError, match="evaluation instances are no finite numbers"):
        Passes(study)


def test_localisation_and_evaluation_are_apart(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    chosen, judged = study.localisation.instances, study.evaluation.instances
    assert not {i.prompt for i in chosen} & {i.prompt for i in judged}
    assert len(chosen) + len(judged) == 180
    assert len(judged) == 12
    assert [f.evaluation for f in study.facts.functions] == [4, 4, 4]


def test_planned_passes_are_those_that_are_made(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    analysis = analyze_study(study, command="x")
    made = sum(len(a.rows) for a in analysis.perturbation.ablations)
    residents = sum(len(layer.resident) for layer in analysis.functionality.neurons)
    missing = 0 if residents else 2  # the resident row and its control
    assert planned_passes(study) == made + 1 + missing


def test_the_document_holds_no_place_of_this_machine(llama: tuple[Path, Analysis]) -> None:
    folder, _ = llama
    assert str(folder) not in (folder / "analysis.json").read_text()
    assert json.loads((folder / "analysis.json").read_text())["data"]["name"] == "letters"


def test_one_functionality_is_refused(tmp_path: Path) -> None:
    alone = [Instance("Math", f"{n}+{n}", str(2 * n)) for n in range(30)]
    with pytest.raises(DataError, match="compares functionalities"):
        open_study(loaded("llama"), alone, Settings(**SETTINGS), tmp_path)


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    bare = wrap_model(tiny_model("llama"))
    with pytest.raises(ConfigurationError, match="no tokenizer"):
        open_study(bare, labelled(), Settings(**SETTINGS), tmp_path)
