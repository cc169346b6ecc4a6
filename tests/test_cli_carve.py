"""``brickwork carve``, as a user calls it: a smaller checkpoint, a brick, and what they cost."""

import gzip
import json
import os
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from brickwork.brick.files import tensor_bytes
from brickwork.brick.folder import read_brick
from brickwork.brick.partition import Partition, PartitionSpec, write_partition
from brickwork.cli.carve import carve
from brickwork.cli.carve_view import render_plan
from brickwork.errors import BrickworkError
from brickwork.measure.choice import silenced
from brickwork.measure.results import FILE
from brickwork.model.carve import Kept
from brickwork.model.export import RECORD
from brickwork.model.load import load_model
from brickwork.reference.paths import model_folder, probe_file
from tests.analysis import synthetic_analysis

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small labelled file: 20 short instances of two functionalities."""
    folder = tmp_path_factory.mktemp("carve")
    with gzip.open(probe_file(), "rt", encoding="utf-8") as lines:
        records = [json.loads(line) for line in lines]
    short = sorted(records, key=lambda record: len(record["prompt"] + record["response"]))
    few = [
        record
        for name in ("Math", "Translation")
        for record in [own for own in short if own["functionality"] == name][:20]
    ]
    (folder / "few.jsonl").write_text("".join(json.dumps(record) + "\n" for record in few))
    plain = [{key: record[key] for key in ("prompt", "response")} for record in few[:8]]
    (folder / "like.jsonl").write_text("".join(json.dumps(record) + "\n" for record in plain))
    return folder


@pytest.fixture
def run(place: Path, tmp_path: Path) -> Iterator[Run]:
    """Runs the command in a folder of its own; with ``--json`` the document, else the text."""

    def call(*words: str) -> Any:
        result = CliRunner().invoke(carve, words, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout) if "--json" in words else result.stdout

    before = Path.cwd()
    for name in ("few.jsonl", "like.jsonl"):
        (tmp_path / name).write_bytes((place / name).read_bytes())
    os.chdir(tmp_path)
    yield call
    os.chdir(before)


FEW = ("reference", "--data", "few.jsonl", "--dtype", "float32", "--device", "cpu")


def test_a_checkpoint_that_transformers_loads_and_the_same_as_a_brick(run: Run) -> None:
    found = run(*FEW, "--for", "math", "-o", "out", "--brick", "brick", "--json")
    assert found["for"] == "Math"
    assert [row["kept"] for row in found["layers"]] == [512] * 8
    assert set(found["losses"]) == {"Math", "Translation"}
    own = found["losses"]["Math"]
    assert own["kept"] < own["random"]
    assert found["size"]["before"]["parameters"] - found["size"]["after"]["parameters"] == (
        8 * 512 * 3 * 256
    )
    model = AutoModelForCausalLM.from_pretrained("out")
    assert model.config.intermediate_size == 512
    words = AutoTokenizer.from_pretrained("out")
    loaded = load_model(str(model_folder()), device="cpu", dtype="float32")
    brick = read_brick(Path("brick"))
    masks = [brick.tensors[f"{site}/keep"].nonzero().squeeze(1) for site in brick.spec.sites]
    ids = words("What is 2 + 2?", return_tensors="pt").input_ids
    with torch.inference_mode():
        with silenced(loaded.model, Kept(neurons=dict(enumerate(masks)))):
            expected = loaded.model(ids).logits
        # The same terms in another order.
        torch.testing.assert_close(model(ids).logits, expected, atol=1e-3, rtol=1e-3)
    assert brick.spec.function.labels == ("Math",)
    assert [(m.before, m.after) for m in brick.spec.metrics] == [
        (losses["before"], losses["kept"]) for losses in found["losses"].values()
    ]
    record = json.loads((Path("out") / RECORD).read_text())
    assert record["base"]["weights"] == loaded.base.fingerprint.weights
    assert record["losses"] == found["losses"]
    assert str(Path.cwd()) not in json.dumps(record)


def test_a_global_budget_says_what_is_padding(run: Run) -> None:
    found = run(*FEW, "--for", "Math", "--widths", "global", "-o", "out", "--json")
    kept = [row["kept"] for row in found["layers"]]
    assert sum(kept) == 8 * 512
    assert min(kept) < max(kept)
    size = found["size"]
    assert size["kept_parameters"] == size["before"]["parameters"] - 8 * 512 * 3 * 256
    padding = sum(max(kept) - own for own in kept)
    assert size["after"]["parameters"] == size["kept_parameters"] + padding * 3 * 256
    assert AutoModelForCausalLM.from_pretrained("out").config.intermediate_size == max(kept)


def test_nothing_is_said_of_padding_where_there_is_none() -> None:
    sizes = {"parameters": 10, "bytes": 40, "flops_per_token": 20}
    document: dict[str, Any] = {
        "units": "heads", "layers": [{"layer": 0, "kept": 1, "of": 2}],
        "size": {"before": sizes, "after": sizes, "kept_parameters": 10},
    }  # fmt: skip
    text = StringIO()
    render_plan(Console(file=text), document)
    assert "zeros" not in text.getvalue()
    document["size"]["kept_parameters"] = 9
    render_plan(Console(file=text), document)
    assert "9 parameters are kept; the rest pads" in text.getvalue()


def test_examples_choose_and_what_is_left_is_compensated_and_healed(run: Run) -> None:
    text = run(
        *FEW[:1], *FEW[3:], "--like", "like.jsonl", "--data", "few.jsonl", "--density", "0.25",
        "--compensate", "--heal", "lora", "--heal-steps", "3", "--heal-data", "few.jsonl",
        "-o", "out",
    )  # fmt: skip
    assert "examples (kept)" in text
    assert all(word in text for word in ("compensated", "healed", "random units", "Translation"))
    losses = json.loads((Path("out") / RECORD).read_text())["losses"]["examples"]
    assert losses["compensated"] < losses["kept"]
    assert set(losses) == {"before", "kept", "random", "compensated", "healed"}


@pytest.mark.parametrize(
    ("units", "config"),
    [("heads", {"num_key_value_heads": 1}), ("layers", {"num_hidden_layers": 4})],
)
def test_heads_and_layers(run: Run, units: str, config: dict[str, int]) -> None:
    found = run(*FEW, "--for", "math", "--units", units, "-o", "out", "--brick", "b", "--json")
    made = AutoModelForCausalLM.from_pretrained("out").config
    assert {name: getattr(made, name) for name in config} == config
    assert found["method"] in {"ablation", "attribution"}
    assert read_brick(Path("b")).spec.form == ("skip" if units == "layers" else "mask")


def test_groups_of_a_partition(run: Run) -> None:
    loaded = load_model(str(model_folder()), device="cpu", dtype="float32")
    owners = {n: torch.arange(1024) % 16 for n in range(8)}
    spec = PartitionSpec(base=loaded.base.fingerprint, method="by hand")
    write_partition(Partition(spec, owners), Path("parts"))
    found = run(*FEW, "--for", "math", "--units", "groups", "--partition", "parts",
                "--brick", "b", "--by", "magnitude", "--json")  # fmt: skip
    assert [row["kept"] for row in found["layers"]] == [8] * 8
    assert "out" not in found
    assert read_brick(Path("b")).spec.granularity == "group"


def test_groups_of_other_weights_are_refused(run: Run) -> None:
    base = load_model(str(model_folder()), device="cpu", dtype="float32").base.fingerprint
    spec = PartitionSpec(base=base.model_copy(update={"weights": "0" * 64}), method="by hand")
    write_partition(Partition(spec, {n: torch.arange(1024) % 16 for n in range(8)}), Path("parts"))
    words = (*FEW, "--units", "groups", "--partition", "parts")
    with pytest.raises(BrickworkError, match="parts is of another model; make one of this"):
        run(*words, "--for", "math", "-o", "out")
    assert not Path("out").exists()
    # Sizes depend on shapes alone, and an outline has no weights to compare.
    assert [row["kept"] for row in run(*words, "--dry-run", "--json")["layers"]] == [8] * 8


def write_analysis(folder: Path, fingerprint: str) -> dict[int, torch.Tensor]:
    """An analysis of the reference model's shape with random scores; the scores for Math."""
    found = synthetic_analysis(layers=8, functions=("Coding", "Math"))
    model = found.model.model_copy(update={"fingerprint": fingerprint, "neurons": [1024] * 8})
    found = found.model_copy(update={"model": model})
    folder.mkdir()
    (folder / FILE).write_text(found.model_dump_json())
    chance = torch.Generator().manual_seed(0)
    scores = {n: torch.rand(1024, 2, generator=chance) for n in range(8)}
    tensors = {f"layers.{n}.mlp.neurons.activation": own for n, own in scores.items()}
    (folder / "scores.safetensors").write_bytes(tensor_bytes(tensors))
    return {n: own[:, 1] for n, own in scores.items()}


def test_the_scores_of_an_analysis_choose(run: Run) -> None:
    loaded = load_model(str(model_folder()), device="cpu", dtype="float32")
    scores = write_analysis(Path("analysis"), loaded.base.fingerprint.weights)
    found = run(*FEW, "--for", "math", "--by", "functionality", "--analysis", "analysis",
                "--brick", "b", "--json")  # fmt: skip
    assert found["method"] == "functionality"
    brick = read_brick(Path("b"))
    for n, site in enumerate(brick.spec.sites):
        best = scores[n].topk(512).indices.sort().values
        assert torch.equal(brick.tensors[f"{site}/keep"].nonzero().squeeze(1), best)


def test_an_analysis_of_other_weights_is_refused(run: Run) -> None:
    write_analysis(Path("analysis"), "0" * 64)
    words = (*FEW, "--for", "math", "--by", "functionality", "--analysis", "analysis")
    with pytest.raises(BrickworkError, match="analyze the model that is carved"):
        run(*words, "--brick", "b")


def test_a_dry_run_tells_sizes_and_writes_nothing(run: Run) -> None:
    found = run("reference", "--dry-run", "--density", "0.25", "-o", "out", "--json")
    assert [row["kept"] for row in found["layers"]] == [256] * 8
    size = found["size"]
    assert size["before"]["parameters"] - size["after"]["parameters"] == 8 * 768 * 3 * 256
    assert size["after"]["flops_per_token"] < size["before"]["flops_per_token"]
    assert size["after"]["bytes"] == 2 * size["after"]["parameters"]
    assert not Path("out").exists()
    assert "FLOPs per token" in run("reference", "--dry-run", "--units", "layers")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--for", "mth", "-o", "out"), "did you mean 'Math'"),
        (("-o", "out"), "neither was given"),
        (("--for", "Math", "--like", "like.jsonl", "-o", "out"), "both were given"),
        (("--for", "Math"), "nowhere to write to"),
        (("--for", "Math", "--brick", "b", "--heal", "lora"), "a brick only keeps or leaves out"),
        (("--for", "Math", "-o", "."), "is there already"),
        (("--for", "Math", "-o", "out", "--brick", "out"), "the same folder or around it"),
        (("--for", "Math", "-o", "out/model", "--brick", "out"), "the same folder or around it"),
        (("--for", "Math", "--brick", "b", "--units", "experts"), "would still pick the others"),
        (("--for", "Math", "-o", "out", "--partition", "."), "neurons, where it has no effect"),
        (("--for", "Math", "-o", "out", "--analysis", "."), "method, where it has no effect"),
        (("--for", "Math", "-o", "out", "--compensate", "--units", "heads"), "--heal what is left"),
        (("--for", "Math", "-o", "out", "--heal-data", "few.jsonl"), "choose --heal lora or full"),
        (("--for", "Math", "-o", "out", "--by", "magnitud"), "did you mean 'magnitude'"),
        (("--for", "Math", "-o", "out", "--units", "groups"), "without a partition"),
        (("--for", "Math", "-o", "out", "--by", "functionality"), "there is no analysis"),
    ],
)
def test_mistakes_are_told(run: Run, words: tuple[str, ...], message: str) -> None:
    with pytest.raises(BrickworkError, match=message):
        run(*FEW, *words)
    assert not Path("out").exists()


def test_a_model_without_data_asks_for_it(run: Run) -> None:
    with pytest.raises(BrickworkError, match="no labelled instances that show what it is"):
        run(str(model_folder()), "--for", "Math", "-o", "out")


def test_the_command_is_one_of_click() -> None:
    assert isinstance(carve, click.Command)
    assert "uniform" in CliRunner().invoke(carve, ["--help"]).output
