"""``brickwork combine`` on a recipe with experts."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from transformers import AutoConfig

from brickwork.cli.combine import combine
from brickwork.errors import ConfigurationError
from tests.tiny import tiny_model, tiny_tokenizer


def test_a_recipe_with_experts_becomes_a_mixture(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "dense")
    tiny_tokenizer().save_pretrained(tmp_path / "dense")
    recipe = {
        "base_model": str(tmp_path / "dense"),
        "experts": [
            {"source_model": str(tmp_path / "dense"), "positive_prompts": [text]}
            for text in ("the man", "a banana")
        ],
    }
    (tmp_path / "moe.yaml").write_text(json.dumps(recipe))
    command = [str(tmp_path / "moe.yaml"), "-o", str(tmp_path / "out"), "--json"]
    planned = CliRunner().invoke(combine, [*command, "--dry-run"])
    assert planned.exit_code == 0, planned.output
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(combine, command)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["family"] == "mixtral"
    assert AutoConfig.from_pretrained(tmp_path / "out").num_local_experts == 2
    record = (tmp_path / "out" / "brickwork.json").read_text()
    assert "a banana" in record
    assert str(tmp_path) not in record


def test_refuses_to_evaluate_a_mixture(tmp_path: Path) -> None:
    (tmp_path / "moe.yaml").write_text("experts: []")
    command = [str(tmp_path / "moe.yaml"), "-o", str(tmp_path / "out")]
    with pytest.raises(ConfigurationError, match="a mixture is not evaluated yet"):
        CliRunner().invoke(combine, [*command, "--evaluate", "reference"], catch_exceptions=False)
