"""``brickwork check``, as a user calls it."""

import json
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from torch import Tensor

from brickwork.brick.folder import write_brick
from brickwork.cli.check import check
from brickwork.errors import BrickFormatError, ConfigurationError, DataError, MergeError
from brickwork.measure.neuron_writes import compare_neurons, neuron_energy
from brickwork.measure.results import FILE
from brickwork.measure.updates import products_at
from brickwork.model.load import LoadedModel, load_model
from brickwork.model.parts import layers_of
from brickwork.model.units import unit_counts
from brickwork.report.interference import read_interference
from tests.analysis import synthetic_analysis
from tests.bricks import random_brick
from tests.tiny import tiny_model

FUNCTIONS = ("code", "math")


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in store is made in a folder of this test, not in the user's own."""
    monkeypatch.setenv("BRICKWORK_HOME", str(tmp_path_factory.mktemp("home")))


def save(family: str, folder: Path) -> LoadedModel:
    tiny_model(family).save_pretrained(folder)
    return load_model(str(folder))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, an analysis of it, three bricks for it, and two models made from it."""
    folder = tmp_path_factory.mktemp("check")
    loaded = save("llama", folder / "base")
    chance = torch.Generator().manual_seed(0)
    paths = [site.path for site in loaded.base.of_kind("linear") if site.layer is not None]
    for name in ("one", "two"):
        brick = random_brick("lora", loaded.base, chance, sites=paths, name=name)
        write_brick(brick, folder / name)
    write_brick(random_brick("steering", loaded.base, chance, name="push"), folder / "push")
    for name, change in (("left", 0.1), ("right", -0.1)):
        tiny_model("llama").save_pretrained(folder / name)
        tensors = load_file(folder / name / "model.safetensors")
        for tensor in [n for n in tensors if "q_proj" in n]:
            noise = torch.randn(tensors[tensor].shape, generator=torch.Generator().manual_seed(7))
            tensors[tensor] += change * noise
        save_file(tensors, folder / name / "model.safetensors", {"format": "pt"})
    write_analysis(loaded, folder / "analysis")
    return folder


def write_analysis(loaded: LoadedModel, folder: Path) -> None:
    """An analysis of random numbers that says it is of this model."""
    folder.mkdir()
    found = synthetic_analysis(layers_of(loaded.model), FUNCTIONS)
    facts = found.model.model_copy(update={"fingerprint": loaded.base.fingerprint.weights})
    (folder / FILE).write_text(found.model_copy(update={"model": facts}).model_dump_json())
    chance = torch.Generator().manual_seed(1)
    tensors: dict[str, Tensor] = {}
    for layer in range(layers_of(loaded.model)):
        neurons = unit_counts(loaded.model, layer)["mlp.neurons"]
        for word in ("activation", "selectivity"):
            scores = torch.rand(neurons, len(FUNCTIONS), generator=chance)
            tensors[f"layers.{layer}.mlp.neurons.{word}"] = scores
    save_file(tensors, folder / "scores.safetensors")


def call(*words: object) -> Result:
    return CliRunner().invoke(check, [str(word) for word in words], catch_exceptions=False)


def run(*words: object) -> dict[str, Any]:
    result = call(*words, "--json")
    assert result.exit_code == 0, result.output
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def test_the_built_in_bricks_are_independent_though_two_read_the_same_directions() -> None:
    found = run("addition", "fr-en")
    (pair,) = found["pairs"]
    assert pair["verdict"] == "independent"
    assert pair["numbers"]["inputs"]["value"] > 10 * pair["numbers"]["inputs"]["expected"]
    assert "both read the same directions" in pair["advice"]
    kept = {row["method"]: row["kept"] for row in found["kept"]}
    # cosine 0.001: each keeps its half, and next to nothing of the other's
    assert kept["linear"]["addition"] == pytest.approx(0.5, abs=0.01)


def test_a_single_brick_is_checked_against_its_base(place: Path) -> None:
    assert call("addition").output == "addition (lora) fits reference\n"
    wrong = call(place / "one", "--model", "reference")
    assert wrong.exit_code == 2
    assert "one (lora) does not fit reference\n  - " in wrong.output


def test_a_page_and_its_numbers_are_written(place: Path, tmp_path: Path) -> None:
    words = (place / "one", place / "two", "--model", place / "base")
    found = run(*words, "--analysis", place / "analysis", "-o", tmp_path / "out")
    read = read_interference(tmp_path / "out")
    document = {k: v for k, v in found.items() if k not in {"fit", "files"}}
    assert read.model_dump(mode="json") == document
    assert [fit["problems"] for fit in found["fit"]] == [[], []]
    assert all((tmp_path / "out" / name).is_file() for name in found["files"])
    page = (tmp_path / "out" / "interference.html").read_text(encoding="utf-8")
    assert "one and two: independent" in page
    assert [row["function"] for row in found["neurons"]] == list(FUNCTIONS)
    text = call(*words, "--analysis", place / "analysis").output
    assert "code neurons get one " in text
    assert "dare_ties (weight 1, density 0.5)" in text


def test_whole_models_are_compared_by_what_they_changed(place: Path) -> None:
    found = run(place / "left", place / "right", "--base", place / "base")
    (pair,) = found["pairs"]
    assert found["sites"] == {"left": 2, "right": 2}
    assert pair["verdict"] == "contradicting"
    assert pair["numbers"]["cosine"]["value"] == pytest.approx(-1.0, abs=1e-5)  # float32 weights
    assert pair["numbers"]["ratio"] == pytest.approx(1.0, rel=1e-5)
    kept = {row["method"]: row["kept"] for row in found["kept"]}
    assert kept["linear"]["left"] == pytest.approx(0.0, abs=1e-5)
    assert {site["site"] for site in pair["sites"]} == {
        f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1)
    }


def test_equal_seeds_give_equal_documents(place: Path) -> None:
    words = (place / "one", place / "two", "--seed", 3)
    assert run(*words) == run(*words)


def test_what_cannot_be_compared_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="a lora and 'push' a steering"):
        run(place / "one", place / "push")
    with pytest.raises(ConfigurationError, match="at least two whole models"):
        run(place / "left", "--base", place / "base")
    with pytest.raises(BrickFormatError, match="which is no folder; name a brick's"):
        run(place / "one", place / "missing")
    with pytest.raises(DataError, match="not of this model"):
        run("addition", "fr-en", "--analysis", place / "analysis")
    save("gpt2", tmp_path / "gpt2")
    with pytest.raises(MergeError, match="cannot be compared with its base"):
        run(place / "left", tmp_path / "gpt2", "--base", place / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(ConfigurationError, match="name the base with --model"):
        run(adapter, "addition")


def test_a_peft_folder_is_a_brick_once_its_base_is_named(place: Path, tmp_path: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((place / "one" / name).read_bytes())
    found = run(place / "one", tmp_path, "--model", place / "base")
    assert found["pairs"][0]["verdict"] == "redundant"


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_the_energy_of_neurons_is_that_of_the_formed_update(family: str, tmp_path: Path) -> None:
    loaded = save(family, tmp_path / family)
    ffn = [s for s in loaded.base.of_kind("linear") if ".mlp." in s.address and s.layer == 1]
    chance = torch.Generator().manual_seed(0)
    brick = random_brick("lora", loaded.base, chance, sites=[s.path for s in ffn])
    wanted = torch.zeros(48, dtype=torch.float64)
    for site in ffn:
        update = products_at([brick], site.path)[0].rows().double()
        for neuron in range(48):
            if site.address.endswith("down"):
                wanted[neuron] += update[:, neuron].square().sum()
            else:  # one row, or for fused projections two that are 48 apart
                wanted[neuron] += update[neuron::48].square().sum()
    # float32 products against float64 factors
    assert torch.allclose(neuron_energy(brick, loaded)[1], wanted, rtol=1e-5)


def test_neurons_are_compared_with_chance(place: Path) -> None:
    loaded = load_model(str(place / "base"))
    down = [s.path for s in loaded.base.of_kind("linear") if s.address.endswith("mlp.down")]
    chance = torch.Generator().manual_seed(0)
    brick = random_brick("lora", loaded.base, chance, sites=down)
    scores = load_file(place / "analysis" / "scores.safetensors")
    with torch.no_grad():
        for layer, path in enumerate(down):  # writes to the neurons of `code` alone
            best = scores[f"layers.{layer}.mlp.neurons.activation"][:, 0].topk(2).indices
            silent = torch.ones(48, dtype=torch.bool)
            silent[best] = False
            brick.tensors[f"{path}/A"][:, silent] = 0
    code, math = compare_neurons([brick, brick], ["a", "b"], loaded, place / "analysis")
    assert code.energy == {"a": 1.0, "b": 1.0}
    assert code.both == [1.0]
    assert math.both[0] < 0.5
    attention = [s.path for s in loaded.base.of_kind("linear") if s.address.endswith("attn.q")]
    without = random_brick("lora", loaded.base, chance, sites=attention)
    with pytest.raises(DataError, match="changes an FFN's linear maps"):
        compare_neurons([without], ["without"], loaded, place / "analysis")


def test_a_folder_that_cannot_be_made_is_refused_first(place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(check, ["addition", "fr-en", "-o", str(tmp_path / "file")])
    assert result.exit_code == click.UsageError.exit_code
    assert "is a file; name another" in result.output


def test_a_model_that_changed_nothing_is_compared(place: Path) -> None:
    words = [str(place / "left"), str(place / "base"), "--base", str(place / "base"), "--json"]
    result = CliRunner().invoke(check, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert all(row["cosine"]["base"] == 0 for row in json.loads(result.stdout)["kept"])


def test_options_of_a_comparison_are_refused_where_there_is_none(place: Path) -> None:
    with pytest.raises(ConfigurationError, match="--out is about bricks beside each other"):
        CliRunner().invoke(check, ["addition", "-o", str(place / "page")], catch_exceptions=False)
    words = [str(place / "left"), str(place / "right"), "--base", str(place / "base")]
    with pytest.raises(ConfigurationError, match="--device would have no effect"):
        CliRunner().invoke(check, [*words, "--device", "cpu"], catch_exceptions=False)
