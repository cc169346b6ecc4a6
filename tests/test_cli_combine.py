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

from brickwork.brick.folder import read_brick
from brickwork.cli.combine import KINDS, combine
from brickwork.errors import ConfigurationError, MergeError
from brickwork.reference.paths import bricks_folder, model_folder
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
