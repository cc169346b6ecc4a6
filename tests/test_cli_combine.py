"""``brickwork combine``, as a user calls it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file

from brickwork.brick.folder import read_brick, write_brick
from brickwork.cli.combine import KINDS, combine
from brickwork.errors import (
    BrickFormatError,
    ConfigurationError,
    DataError,
    MergeError,
    UnknownNameError,
)
from brickwork.model.load import load_model
from brickwork.reference.paths import bricks_folder, model_folder
from tests.bricks import random_brick
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tiny models, and a recipe for their mean."""
    folder = tmp_path_factory.mktemp("combine")
    for seed, name in enumerate(("one", "two")):
        tiny_model("llama", seed).save_pretrained(folder / name)
        tiny_tokenizer().save_pretrained(folder / name)
    write_recipe(folder / "soup.yaml", folder)
    return folder


def write_recipe(file: Path, models: Path, method: str = "linear", **more: Any) -> Path:
    inputs = [{"model": str(models / n), "parameters": {"weight": 0.5}} for n in ("one", "two")]
    file.write_text(json.dumps({"merge_method": method, "models": inputs, **more}))
    return file


def call(*words: object) -> Result:
    return CliRunner().invoke(combine, [str(word) for word in words], catch_exceptions=False)


def document(*words: object) -> dict[str, Any]:
    result = call(*words, "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_dry_run_says_what_will_be_and_writes_nothing(place: Path, tmp_path: Path) -> None:
    planned = document(place / "soup.yaml", "-o", tmp_path / "out", "--dry-run")
    assert list(tmp_path.iterdir()) == []
    done = document(place / "soup.yaml", "-o", tmp_path / "out", "--workers", planned["workers"])
    assert planned.items() <= done.items()
    held = load_file(tmp_path / "out/model.safetensors")
    assert planned["tensors"] == len(held)
    assert planned["parameters"] == sum(t.numel() for t in held.values())
    assert planned["bytes_to_write"] == sum(t.nbytes for t in held.values())
    assert planned["bytes_to_read"] == 2 * planned["bytes_to_write"]
    assert planned["methods"] == {"linear": len(held)}
    assert planned["models"] == ["one", "two"]
    assert done["files"] == 1


def test_the_result_is_the_mean_and_says_how_it_came_to_be(place: Path, tmp_path: Path) -> None:
    document(place / "soup.yaml", "-o", tmp_path / "out")
    one, two = (load_file(place / n / "model.safetensors") for n in ("one", "two"))
    for name, merged in load_file(tmp_path / "out/model.safetensors").items():
        exact = (one[name].double() + two[name].double()) / 2
        assert torch.allclose(merged.double(), exact, atol=1e-6)  # float32
    record = json.loads((tmp_path / "out/brickwork.json").read_text())
    assert [m["model"] for m in record["recipe"]["models"]] == ["one", "two"]
    assert str(place) not in json.dumps(record)


def test_the_size_of_shards_is_in_bytes(place: Path, tmp_path: Path) -> None:
    done = document(place / "soup.yaml", "-o", tmp_path / "out", "--shard-size", "40kB")
    files = list((tmp_path / "out").glob("model-*.safetensors"))
    assert done["files"] == len(files) > 1
    largest = max(t.nbytes for f in files for t in load_file(f).values())
    for file in files:
        assert sum(t.nbytes for t in load_file(file).values()) <= max(40_000, largest)


@pytest.mark.parametrize("size", ["five", "0", "5XB", "-1"])
def test_what_is_no_size_is_refused(place: Path, tmp_path: Path, size: str) -> None:
    result = call(place / "soup.yaml", "-o", tmp_path / "out", f"--shard-size={size}")
    assert result.exit_code == 2
    assert "is no size; write for example 5GB or 200MB" in result.output


def test_a_seed_of_the_command_goes_before_the_recipes(place: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", place, seed=3)
    assert document(recipe, "-o", tmp_path / "out", "--dry-run")["seed"] == 3
    assert document(recipe, "-o", tmp_path / "out", "--dry-run", "--seed", 4)["seed"] == 4


def test_a_person_reads_a_table(place: Path, tmp_path: Path) -> None:
    text = " ".join(call(place / "soup.yaml", "-o", tmp_path / "m", "--dry-run").output.split())
    assert "linear (" in text
    assert "memory" in text
    assert "model, not written (dry run):" in text
    text = " ".join(call(place / "soup.yaml", "-o", tmp_path / "m").output.split())
    assert "MB/s read and written" in text
    assert f"model: {tmp_path / 'm'}" in text


def test_a_chat_template_is_set(place: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", place, chat_template="chatml")
    document(recipe, "-o", tmp_path / "out")
    assert "<|im_start|>" in (tmp_path / "out/chat_template.jinja").read_text()
    assert (tmp_path / "out/tokenizer.json").exists()


def test_a_misspelt_key_is_refused(place: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", place, modles=[])
    with pytest.raises(ConfigurationError, match="modles"):
        call(recipe, "-o", tmp_path / "out")


def test_a_taken_place_is_refused_before_the_recipe_is_read(place: Path, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match="which is there already"):
        call(place / "soup.yaml", "-o", tmp_path)


def test_a_merge_needs_neither_transformers_nor_peft(place: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom brickwork.cli.main import main\n"
        f"assert main(['combine', {str(place / 'soup.yaml')!r}, '-o', {str(tmp_path / 'o')!r}]) "
        "== 0\nprint(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    )
    loaded = set(run.stderr.split())
    assert loaded.isdisjoint({"transformers", "peft", "tokenizers", "sklearn", "matplotlib"})


def test_bricks_are_merged_by_the_same_command(tmp_path: Path) -> None:
    uses = [{"brick": name, "parameters": {"weight": 0.5}} for name in ("addition", "robot")]
    recipe = tmp_path / "r.yaml"
    recipe.write_text(json.dumps({"merge_method": "linear", "bricks": uses}))
    planned = document(recipe, "-o", tmp_path / "both", "--dry-run")
    assert [brick["form"] for brick in planned["bricks"]] == ["lora", "lora"]
    assert not (tmp_path / "both").exists()
    done = document(recipe, "-o", tmp_path / "both")
    assert read_brick(tmp_path / "both").hash == done["hash"]


def test_a_lora_is_added_to_a_model_of_the_recipe(tmp_path: Path) -> None:
    model = f"reference+{bricks_folder() / 'robot'}"
    recipe = tmp_path / "r.yaml"
    models = [{"model": model, "parameters": {"weight": 1}}]
    recipe.write_text(json.dumps({"merge_method": "linear", "models": models}))
    assert document(recipe, "-o", tmp_path / "out")["models"] == ["reference+robot"]
    brick = read_brick(bricks_folder() / "robot")
    merged = load_file(tmp_path / "out/model.safetensors")
    own = load_file(model_folder() / "model.safetensors")
    changed = {name for name in own if not torch.equal(own[name], merged[name])}
    assert changed == {f"{site}.weight" for site in brick.by_site}


def test_it_is_a_command_with_an_example_of_its_own() -> None:
    assert isinstance(combine, click.Command)
    assert "brickwork combine soup.yaml" in (combine.help or "")
    assert {"bricks", "experts"} <= set(KINDS)


def test_a_lora_may_be_named_as_a_brick_of_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRICKWORK_HOME", str(tmp_path / "home"))
    recipe = {"merge_method": "passthrough", "models": [{"model": "reference+shell@1"}]}
    (tmp_path / "one.yaml").write_text(json.dumps(recipe))
    said = document(tmp_path / "one.yaml", "-o", tmp_path / "out")
    assert said["models"] == ["reference+shell"]
    brick = read_brick(bricks_folder() / "shell")
    site = "model.layers.3.mlp.down_proj"
    base = load_file(model_folder() / "model.safetensors")[f"{site}.weight"].double()
    slots, alpha = brick.by_site[site], float(brick.spec.options["alpha"])  # type: ignore[arg-type]
    update = slots["B"].double() @ slots["A"].double() * (alpha / len(slots["A"]))
    merged = load_file(tmp_path / "out/model.safetensors")[f"{site}.weight"].double()
    # One rounding to bfloat16, of 2**-9, over sums in float32.
    assert torch.allclose(merged, base + update, rtol=2**-8, atol=1e-6)
    wrong = {"merge_method": "passthrough", "models": [{"model": "reference+shel"}]}
    (tmp_path / "two.yaml").write_text(json.dumps(wrong))
    with pytest.raises(UnknownNameError, match="did you mean 'shell'"):
        call(tmp_path / "two.yaml", "-o", tmp_path / "no")


def test_everyone_is_measured_on_the_same_instances(place: Path, tmp_path: Path) -> None:
    base = load_model(str(place / "one")).base
    brick = random_brick("lora", base, torch.Generator().manual_seed(0))
    write_brick(brick, tmp_path / "adapter")
    models = [
        {"model": str(place / "one"), "parameters": {"weight": 1.0}},
        {"model": f"{place / 'one'}+{tmp_path / 'adapter'}", "parameters": {"weight": 1.0}},
    ]
    recipe = {
        "merge_method": "task_arithmetic", "models": models, "base_model": str(place / "one"),
    }  # fmt: skip
    (tmp_path / "sum.yaml").write_text(json.dumps(recipe))
    lines = [
        json.dumps({"functionality": f, "prompt": f"a b {n}", "response": "c d e"})
        for n, f in enumerate("xyxy")
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    said = document(
        tmp_path / "sum.yaml", "-o", tmp_path / "out", "--evaluate", tmp_path / "data.jsonl",
        "--report", tmp_path / "report",
    )  # fmt: skip
    members = {m["name"]: m for m in said["tradeoff"]["members"]}
    assert {n: m["role"] for n, m in members.items()} == {
        "one": "base", "one+adapter": "parent", "out": "child",
    }  # fmt: skip
    # The base plus all of the only change is the parent; its brick runs unmerged: float32 sums.
    for name, loss in members["out"]["losses"].items():
        assert loss == pytest.approx(members["one+adapter"]["losses"][name], abs=1e-4)
        assert abs(loss - members["one"]["losses"][name]) > 1e-3
    assert said["tradeoff"]["instances"] == {"x": 2, "y": 2}
    assert (tmp_path / "report/tradeoff.html").is_file()
    assert str(tmp_path) not in (tmp_path / "report/tradeoff.json").read_text()


def test_data_that_cannot_be_read_is_refused_before_the_merge(place: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError):
        call(place / "soup.yaml", "-o", tmp_path / "out", "--evaluate", tmp_path / "none.jsonl")
    assert not (tmp_path / "out").exists()


def brick_recipe(folder: Path) -> Path:
    uses = [{"brick": name, "parameters": {"weight": 0.5}} for name in ("addition", "robot")]
    (folder / "bricks.yaml").write_text(json.dumps({"merge_method": "linear", "bricks": uses}))
    return folder / "bricks.yaml"


def test_bricks_are_measured_beside_their_base(tmp_path: Path) -> None:
    line = json.dumps({"functionality": "x", "prompt": "12 + 17 =", "response": "29"})
    (tmp_path / "data.jsonl").write_text(line)
    said = document(
        brick_recipe(tmp_path), "-o", tmp_path / "My Both", "--evaluate", tmp_path / "data.jsonl"
    )
    assert said["name"] == "my-both"
    members = {m["name"]: m["role"] for m in said["tradeoff"]["members"]}
    assert members == {
        "reference": "base", "addition": "parent", "robot": "parent", "my-both": "child",
    }  # fmt: skip
    losses = {m["name"]: m["losses"]["x"] for m in said["tradeoff"]["members"]}
    assert losses["addition"] < losses["my-both"] < losses["robot"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard-size", "3MB"], "--shard-size would have no effect"),
        (["--longest", 3], "--longest says how losses are measured"),
        (["--report", "page"], "add --evaluate"),
    ],
)
def test_options_without_effect_are_refused(
    tmp_path: Path, options: list[object], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        call(brick_recipe(tmp_path), "-o", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_recipe_of_two_kinds_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(json.dumps({"bricks": [], "models": []}))
    with pytest.raises(ConfigurationError, match="'bricks' and 'models'"):
        call(tmp_path / "r.yaml", "-o", tmp_path / "out")


def test_a_taken_place_is_refused_before_bricks_are_merged(tmp_path: Path) -> None:
    with pytest.raises(BrickFormatError, match="which is there already"):
        call(brick_recipe(tmp_path), "-o", tmp_path, "--dry-run")
