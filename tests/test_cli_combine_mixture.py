"""``brickwork combine`` on a recipe with experts."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from transformers import AutoConfig

from brickwork.cli.combine import combine
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


def test_a_mixture_is_measured_beside_its_base_and_experts(tmp_path: Path) -> None:
    for seed, name in enumerate(("base", "other")):
        tiny_model("llama", seed).save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
    experts = [{"source_model": str(tmp_path / name)} for name in ("base", "other")]
    recipe = {"base_model": str(tmp_path / "base"), "experts": experts, "gate_mode": "random"}
    (tmp_path / "moe.yaml").write_text(json.dumps(recipe))
    line = json.dumps({"functionality": "x", "prompt": "a b", "response": "c d e"})
    (tmp_path / "data.jsonl").write_text(line)
    command = [str(tmp_path / "moe.yaml"), "-o", str(tmp_path / "out"), "--json"]
    command += ["--evaluate", str(tmp_path / "data.jsonl")]
    done = CliRunner().invoke(combine, command, catch_exceptions=False)
    members = json.loads(done.stdout)["tradeoff"]["members"]
    assert {m["name"]: m["role"] for m in members} == {
        "base": "base", "other": "parent", "out": "child",
    }  # fmt: skip
    assert str(tmp_path) not in (tmp_path / "out" / "config.json").read_text()


def test_a_dry_run_reads_no_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "dense")
    recipe = {
        "base_model": str(tmp_path / "dense"),
        "experts": [
            {"source_model": str(tmp_path / "dense"), "positive_prompts": [text]}
            for text in ("the man", "a banana")
        ],
    }
    (tmp_path / "moe.yaml").write_text(json.dumps(recipe))
    monkeypatch.setattr("brickwork.combine.mixture.prompted_rows", None)
    command = [str(tmp_path / "moe.yaml"), "-o", str(tmp_path / "out"), "--dry-run"]
    result = CliRunner().invoke(combine, command, catch_exceptions=False)
    assert result.exit_code == 0
