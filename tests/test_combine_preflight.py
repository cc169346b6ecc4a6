"""Merges that cannot work are refused before any weight is read, with every reason."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from brickwork.errors import MergeError, ModelError
from tests.mergers import edit_config, edit_tensors, plan_letters, save_tiny
from tests.tiny import tiny_tokenizer

LINEAR: dict[str, Any] = {
    "merge_method": "linear",
    "models": [{"model": "A"}, {"model": "B"}],
    "parameters": {"weight": 1},
}
Sources = list[tuple[str, int, int]]


def sliced(*slices: Sources, **more: Any) -> dict[str, Any]:
    written = [
        {"sources": [{"model": m, "layer_range": [i, j]} for m, i, j in one]} for one in slices
    ]
    return {**LINEAR, "slices": written, **more} | {"models": None}


def refused(folder: Path, document: dict[str, Any], *reasons: str) -> None:
    with pytest.raises(MergeError) as caught:
        plan_letters(folder, document)
    for reason in reasons:
        assert reason in str(caught.value)


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    for letter in ("A", "B"):
        save_tiny(tmp_path / letter)
    return tmp_path


def test_all_problems_come_at_once(pair: Path) -> None:
    edit_config(pair / "B", model_type="mistral", quantization_config={"bits": 4})
    refused(
        pair,
        LINEAR | {"merge_method": "slerp", "parameters": {"t": 1}},
        "B is quantised (its configuration has a quantization_config)",
        "A is of the architecture 'llama', but B of 'mistral'",
        "models: slerp needs a base, and there is none; name it as `base_model`",
    )


def test_models_with_other_heads_are_refused(pair: Path) -> None:
    edit_config(pair / "B", num_key_value_heads=4)
    refused(pair, LINEAR, "num_key_value_heads is 2 in A, but 4 in B; their weights")


def test_settings_that_change_the_meaning_a_little_are_noted(pair: Path) -> None:
    edit_config(pair / "B", rms_norm_eps=0.5)
    notes = plan_letters(pair, LINEAR).notes
    assert notes == ["rms_norm_eps is 0.5 in B and 1e-06 in A, which the output follows"]


def test_other_shapes_are_refused_by_name(pair: Path) -> None:
    save_tiny(pair / "B", intermediate_size=64)
    refused(pair, LINEAR, "'model.layers.0.mlp.up_proj.weight' is [48, 32] in A, [64, 32] in B",
            "merge models of one size")  # fmt: skip


def test_another_vocabulary_needs_a_tokenizer_setting(pair: Path) -> None:
    save_tiny(pair / "B", vocab_size=120)
    refused(pair, LINEAR, "'model.embed_tokens.weight' is [112, 32] in A, [120, 32] in B",
            "set `tokenizer_source: union` (or `base`) to align them")  # fmt: skip
    plan = plan_letters(pair, LINEAR | {"tokenizer_source": "union"})
    assert {t.shape[0] for t in plan.tensors if t.vocabulary} == {112}


def test_tokens_that_differ_in_place_are_refused(pair: Path) -> None:
    for letter in ("A", "B"):
        tiny_tokenizer().save_pretrained(pair / letter)
    assert plan_letters(pair, LINEAR).notes == []
    path = pair / "B" / "tokenizer.json"
    path.write_text(path.read_text().replace('"the"', '"teh"'))
    refused(pair, LINEAR, "1 tokens of A and B differ (number 98 is 'the' in one and 'teh'")
    assert plan_letters(pair, LINEAR | {"tokenizer_source": "base"}).notes == []


def test_added_tokens_that_differ_are_noted(pair: Path) -> None:
    for letter, token in (("A", "<reserved>"), ("B", "<tool>")):
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens([token])
        tokenizer.save_pretrained(pair / letter)
    (note,) = plan_letters(pair, LINEAR).notes
    assert "1 added tokens of A and B differ" in note


def test_missing_tensors_are_named(pair: Path) -> None:
    edit_tensors(pair / "B", **{"model.layers.1.mlp.up_proj.weight": None})
    refused(pair, LINEAR, "B lacks 1 tensors that other models have",
            "model.layers.1.mlp.up_proj.weight")  # fmt: skip


def test_weights_of_whole_numbers_are_not_merged_with_others(pair: Path) -> None:
    name = "model.norm.weight"
    edit_tensors(pair / "B", **{name: torch.ones(32, dtype=torch.int64)})
    refused(pair, LINEAR, f"{name!r} is torch.float32 in A, torch.int64 in B")


def test_weights_in_eight_bits_are_refused(pair: Path) -> None:
    held = load_file(pair / "B" / "model.safetensors")["model.norm.weight"]
    edit_tensors(pair / "B", **{"model.norm.weight": held.to(torch.float8_e4m3fn)})
    refused(pair, LINEAR, "B is quantised ('model.norm.weight' is kept in torch.float8_e4m3fn)")


def test_layer_ranges_are_checked(pair: Path) -> None:
    refused(pair, sliced([("A", 0, 3)]), "slices.0: layers 0 to 2 of A are asked for, but it has 2")
    refused(pair, sliced([("A", 1, 1)]), "slices.0: the layer range is empty")
    refused(pair, sliced([("A", 2, 1)]), "slices.0: the layer range is empty")
    refused(
        pair,
        sliced([("A", 0, 1)], [("A", 0, 2), ("B", 0, 1)]),
        "slices.1: all sources must have the same number of layers, not 2 of A, 1 of B",
    )


def test_the_number_of_models_is_checked(pair: Path) -> None:
    refused(pair, LINEAR | {"merge_method": "passthrough"}, "models: passthrough needs 1")
    more = {"merge_method": "slerp", "parameters": {"t": 0.5}, "base_model": "B"}
    refused(pair, sliced([("A", 0, 2)], **more), "slices.0: the base B is not among the sources")


def test_a_base_that_is_no_base_needs_a_weight_of_its_own(pair: Path) -> None:
    save_tiny(pair / "Z")
    models = [{"model": m, "parameters": {"weight": 1}} for m in ("A", "B")]
    document = {"merge_method": "linear", "models": models, "base_model": "Z"}
    refused(pair, document, "weight of Z has no value for 21 tensors")


def test_statistics_are_asked_for(pair: Path) -> None:
    refused(
        pair,
        {"merge_method": "fisher", "models": [{"model": "A"}, {"model": "B"}]},
        "fisher weighs by statistics, and A has none",
        "and B has none",
    )
    models = [{"model": m, "statistics": "nowhere"} for m in ("A", "B")]
    refused(
        pair,
        {"merge_method": "fisher", "models": models},
        "there is no folder 'nowhere' with statistics of A (models)",
    )


def test_slices_need_layers_and_one_meaning(pair: Path) -> None:
    edit_tensors(pair / "A", **{f"vision.blocks.{n}.weight": torch.ones(2) for n in range(2)})
    document = sliced([("A", 0, 1)])
    refused(pair, document, "slices do not say which layers they mean")
    modules = {"text": {"slices": document["slices"]}}
    refused(
        pair,
        document | {"slices": None, "modules": modules},
        "modules: only one can be given, and only default or model.layers",
    )
    inside = {"default": {"slices": document["slices"]}}
    plan = plan_letters(pair, document | {"slices": None, "modules": inside})
    assert "vision.blocks.1.weight" in [tensor.name for tensor in plan.tensors]


def test_a_model_without_layers_is_merged_whole_only(tmp_path: Path) -> None:
    save_tiny(tmp_path / "A")
    names = load_file(tmp_path / "A" / "model.safetensors")
    edit_tensors(tmp_path / "A", **{n: None for n in names if "layers" in n})
    refused(tmp_path, sliced([("A", 0, 1)]), "no layers can be told from the names in A")
    plan = plan_letters(tmp_path, LINEAR | {"models": [{"model": "A"}]})
    assert len(plan.tensors) == 3


def test_an_encoder_with_a_decoder_is_merged_whole_only(pair: Path) -> None:
    edit_config(pair / "A", is_encoder_decoder=True)
    refused(pair, sliced([("A", 0, 1)]), "A has an encoder and a decoder, which cannot be sliced")


def test_a_damaged_configuration_is_refused(pair: Path) -> None:
    (pair / "B" / "config.json").write_text("[]")
    refused(pair, LINEAR, "config.json of B is no mapping")
    (pair / "B" / "config.json").write_text("{")
    refused(pair, LINEAR, "config.json of B is damaged")


def test_damaged_weights_are_refused(pair: Path) -> None:
    (pair / "B" / "model.safetensors").write_bytes(b"\0" * 16)
    with pytest.raises(ModelError, match="no sound safetensors file"):
        plan_letters(pair, LINEAR)
