"""Plans of merges: which tensors, from where, in which order, dtype and configuration."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from brickwork.combine.names import find_stacks, natural
from brickwork.combine.plan import MergePlan, Operand, TensorPlan
from tests.mergers import A, B, edit_config, edit_tensors, plan_letters, save_tiny
from tests.tiny import FAMILIES

WHOLE: dict[str, Any] = {
    "merge_method": "linear",
    "models": [{"model": "A"}, {"model": "B"}],
    "parameters": {"weight": 1},
}


def stack_of(*pieces: tuple[str, int, int], **more: Any) -> dict[str, Any]:
    slices = [{"sources": [{"model": m, "layer_range": [i, j]}]} for m, i, j in pieces]
    return {"merge_method": "passthrough", "slices": slices, **more}


def by_name(plan: MergePlan) -> dict[str, TensorPlan]:
    return {tensor.name: tensor for tensor in plan.tensors}


def origins(plan: MergePlan) -> dict[str, str]:
    return {t.name: f"{t.operands[0].ref}:{t.operands[0].tensor}" for t in plan.tensors}


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    for letter in ("A", "B"):
        save_tiny(tmp_path / letter, layers=3)
    return tmp_path


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_models_of_any_family_keep_all_their_tensors(family: str, tmp_path: Path) -> None:
    for letter in ("A", "B"):
        save_tiny(tmp_path / letter, family)
    plan = plan_letters(tmp_path, WHOLE)
    held = load_file(tmp_path / "A" / "model.safetensors")
    assert {t.name: (t.shape, t.dtype) for t in plan.tensors} == {
        name: (tuple(tensor.shape), tensor.dtype) for name, tensor in held.items()
    }
    assert all(t.operands == (Operand(A, t.name, "A"), Operand(B, t.name, "B"))
               for t in plan.tensors)  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "A")
    tables = {model.get_input_embeddings().weight, model.get_output_embeddings().weight}
    shapes = [t.shape for t in plan.tensors if t.vocabulary]
    assert shapes == [tuple(table.shape) for table in tables]
    assert plan.notes == []


@pytest.mark.parametrize("family", FAMILIES)
def test_sliced_models_of_any_family_are_whole_again(family: str, tmp_path: Path) -> None:
    save_tiny(tmp_path / "A", family)
    plan = plan_letters(tmp_path, stack_of(("A", 0, 2), ("A", 1, 2)))
    held = load_file(tmp_path / "A" / "model.safetensors")
    out = tmp_path / "out"
    AutoConfig.from_pretrained(tmp_path / "A").save_pretrained(out)
    edit_config(out, **plan.config)
    save_file(
        {t.name: held[t.operands[0].tensor].clone() for t in plan.tensors},
        out / "model.safetensors",
        metadata={"format": "pt"},
    )
    model, report = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert model.config.num_hidden_layers == 3
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]


def test_layers_are_in_their_natural_order(tmp_path: Path) -> None:
    save_tiny(tmp_path / "A", layers=12)
    plan = plan_letters(tmp_path, stack_of(("A", 0, 12)))
    names = [tensor.name for tensor in plan.tensors]
    assert names[0] == "model.embed_tokens.weight"
    assert set(names[-2:]) == {"model.norm.weight", "lm_head.weight"}
    assert names[1:-2] == sorted(names[1:-2], key=natural)
    assert names.index("model.layers.2.mlp.up_proj.weight") < names.index(
        "model.layers.10.mlp.up_proj.weight"
    )


def test_embeddings_come_from_the_first_slice_and_the_head_from_the_last(pair: Path) -> None:
    found = origins(plan_letters(pair, stack_of(("A", 0, 2), ("B", 1, 3))))
    assert found["model.embed_tokens.weight"] == "A:model.embed_tokens.weight"
    assert found["lm_head.weight"] == "B:lm_head.weight"
    assert found["model.norm.weight"] == "B:model.norm.weight"
    assert found["model.layers.2.mlp.up_proj.weight"] == "B:model.layers.1.mlp.up_proj.weight"


def test_the_head_has_all_inputs_of_the_last_slice(pair: Path) -> None:
    document = stack_of(("A", 0, 1), merge_method="linear", parameters={"weight": 1})
    both = [{"model": m, "layer_range": [1, 3]} for m in ("A", "B")]
    document["slices"].append({"sources": both})
    tensors = by_name(plan_letters(pair, document))
    # mergekit counts the inputs of the first slice here, and takes A alone.
    assert [o.ref for o in tensors["lm_head.weight"].operands] == [A, B]
    assert [o.ref for o in tensors["model.embed_tokens.weight"].operands] == [A]


def test_passthrough_copies_unless_it_scales(pair: Path) -> None:
    scale = {"parameters": {"scale": [{"filter": "o_proj", "value": 0}]}}
    tensors = plan_letters(pair, stack_of(("A", 0, 3), **scale)).tensors
    assert {t.method for t in tensors if "o_proj" in t.name} == {"passthrough"}
    assert {t.method for t in tensors if "o_proj" not in t.name} == {"copy"}


def test_one_model_may_take_part_twice(pair: Path) -> None:
    document = {
        "merge_method": "linear",
        "slices": [{"sources": [{"model": "A", "layer_range": [n, n + 2]} for n in (0, 1)]}],
        "parameters": {"weight": 0.5},
    }
    tensor = by_name(plan_letters(pair, document))["model.layers.1.mlp.up_proj.weight"]
    assert tensor.operands == (
        Operand(A, "model.layers.1.mlp.up_proj.weight", "A"),
        Operand(A, "model.layers.2.mlp.up_proj.weight", "A#2"),
    )


def test_the_layers_own_settings_follow_the_layers(tmp_path: Path) -> None:
    save_tiny(tmp_path / "A", "gemma2")
    save_tiny(tmp_path / "M", "qwen3_moe")
    gemma = plan_letters(tmp_path, stack_of(("A", 1, 2), ("A", 0, 2)))
    assert gemma.config["layer_types"] == [
        "full_attention", "sliding_attention", "full_attention",
    ]  # fmt: skip
    moe = plan_letters(tmp_path, stack_of(("M", 1, 2), ("M", 0, 2)))
    assert moe.config["mlp_only_layers"] == [1]
    assert moe.config["num_hidden_layers"] == 3


@pytest.mark.parametrize("pattern", [None, 2])
def test_layers_stay_of_their_kind_where_older_configurations_do_not_say_it(
    tmp_path: Path, pattern: int | None
) -> None:
    save_tiny(tmp_path / "A", "gemma3_text" if pattern else "gemma2")
    save_tiny(tmp_path / "B", "gemma3_text" if pattern else "gemma2")
    edit_config(
        tmp_path / "A", layer_types=None, _sliding_window_pattern=None,
        sliding_window_pattern=pattern,
    )  # fmt: skip
    for first, second in ("AA", "AB", "BA"):
        plan = plan_letters(tmp_path, stack_of((first, 1, 2), (second, 0, 2)))
        assert plan.config["layer_types"] == [
            "full_attention", "sliding_attention", "full_attention",
        ]  # fmt: skip
        assert not any("counts layers" in note for note in plan.notes)


@pytest.mark.parametrize(
    "settings",
    [{"mlp_only_layers": 3}, {"per_layer_config": 3}, {"layer_types": [1]}, {"layer_types": 1}],
)
def test_a_layers_settings_of_another_kind_are_passed_over(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    for name in "AB":
        save_tiny(tmp_path / name, "gemma2")
        edit_config(tmp_path / name, mlp_only_layers=[0], per_layer_config={"0": {}})
    edit_config(tmp_path / "B", **settings)
    plan = plan_letters(tmp_path, stack_of(("A", 1, 2), ("B", 0, 2)))
    assert plan.config["num_hidden_layers"] == 3
    assert len(plan.config.get("layer_types", [0] * 3)) == 3


def test_kinds_of_layers_that_nobody_knows_are_noted(tmp_path: Path) -> None:
    save_tiny(tmp_path / "A", "gemma2")
    edit_config(tmp_path / "A", layer_types=None, model_type="gemma2000")
    plan = plan_letters(tmp_path, stack_of(("A", 1, 2), ("A", 0, 2)))
    assert "layer_types" not in plan.config
    assert any("check layer_types by hand" in note for note in plan.notes)


def test_settings_that_count_layers_are_noted(tmp_path: Path) -> None:
    save_tiny(tmp_path / "A")
    edit_config(tmp_path / "A", first_k_dense_replace=2)
    notes = plan_letters(tmp_path, stack_of(("A", 1, 2))).notes
    assert any("first_k_dense_replace counts layers" in note for note in notes)


@pytest.mark.parametrize(
    ("settings", "cast", "written"),
    [
        ({}, None, torch.float32),
        ({"dtype": "bfloat16"}, torch.bfloat16, torch.bfloat16),
        ({"out_dtype": "float16"}, None, torch.float16),
        ({"dtype": "bfloat16", "out_dtype": "float32"}, torch.bfloat16, torch.float32),
    ],
)
def test_dtypes_are_cast_before_and_after(
    settings: dict[str, str], cast: torch.dtype | None, written: torch.dtype, pair: Path
) -> None:
    plan = plan_letters(pair, WHOLE | settings)
    assert {(t.cast, t.dtype) for t in plan.tensors} == {(cast, written)}
    assert plan.config["dtype"] == str(written).removeprefix("torch.")


def test_mixed_dtypes_are_promoted_tensor_by_tensor(pair: Path) -> None:
    held = load_file(pair / "B" / "model.safetensors")
    edit_tensors(pair / "A", **{n: t.to(torch.bfloat16) for n, t in held.items()})
    halves = {n: t.to(torch.float16 if "mlp" in n else torch.bfloat16) for n, t in held.items()}
    edit_tensors(pair / "B", **halves)
    dtypes = {("mlp" in t.name): t.dtype for t in plan_letters(pair, WHOLE).tensors}
    assert dtypes == {True: torch.float32, False: torch.bfloat16}


def test_a_tied_model_lends_its_embedding_as_a_head(pair: Path) -> None:
    edit_tensors(pair / "A", **{"lm_head.weight": None})
    edit_config(pair / "A", tie_word_embeddings=True)
    plan = plan_letters(pair, WHOLE)
    assert plan.config["tie_word_embeddings"] is False
    head = by_name(plan)["lm_head.weight"]
    assert [o.tensor for o in head.operands] == ["model.embed_tokens.weight", "lm_head.weight"]
    assert head.vocabulary


def test_a_head_is_not_made_for_tied_models(pair: Path) -> None:
    for letter in ("A", "B"):
        edit_tensors(pair / letter, **{"lm_head.weight": None})
        edit_config(pair / letter, tie_word_embeddings=True)
    plan = plan_letters(pair, WHOLE)
    assert "lm_head.weight" not in by_name(plan)
    assert plan.config["tie_word_embeddings"] is True


def test_a_stored_head_that_equals_the_embedding_is_tied_if_the_configuration_says_so(
    pair: Path,
) -> None:
    edit_config(pair / "A", tie_word_embeddings=True)
    assert "lm_head.weight" in by_name(plan_letters(pair, stack_of(("A", 0, 3))))
    table = load_file(pair / "A" / "model.safetensors")["model.embed_tokens.weight"]
    edit_tensors(pair / "A", **{"lm_head.weight": table.clone()})
    assert "lm_head.weight" not in by_name(plan_letters(pair, stack_of(("A", 0, 3))))


def test_buffers_of_whole_numbers_are_copied_if_all_agree(pair: Path) -> None:
    for letter in ("A", "B"):
        edit_tensors(pair / letter, **{"model.mask": torch.ones(4, dtype=torch.int64)})
    tensor = by_name(plan_letters(pair, WHOLE | {"dtype": "bfloat16"}))["model.mask"]
    assert (tensor.method, tensor.dtype, tensor.cast) == ("copy", torch.int64, None)
    assert len(tensor.operands) == 2  # whoever reads them compares them


def test_buffers_that_models_compute_anew_may_be_missing(pair: Path) -> None:
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_tensors(pair / "A", **{name: torch.ones(4)})
    plan = plan_letters(pair, WHOLE)
    assert name not in by_name(plan)
    assert "left out" in plan.notes[0]


def test_a_tensor_of_one_model_alone_is_copied_where_the_method_says_so(pair: Path) -> None:
    edit_tensors(pair / "A", extra=torch.ones(4))
    document = WHOLE | {"merge_method": "slerp", "base_model": "B", "parameters": {"t": 0.5}}
    tensor = by_name(plan_letters(pair, document))["extra"]
    assert (tensor.method, tensor.operands, tensor.base) == (
        "copy",
        (Operand(A, "extra", "A"),),
        None,
    )


def test_the_base_is_the_donor_and_no_operand(pair: Path) -> None:
    document = WHOLE | {"merge_method": "task_arithmetic", "base_model": "B", "seed": 7}
    plan = plan_letters(pair, document)
    tensor = plan.tensors[1]
    assert (plan.donor, plan.seed) == (B, 7)
    assert tensor.base == Operand(B, tensor.name, "B")
    assert tensor.operands == (Operand(A, tensor.name, "A"),)
    assert tensor.parameters["weight"] == (1.0,)


def test_a_module_names_the_layers_of_the_text_part(pair: Path) -> None:
    plain = plan_letters(pair, stack_of(("A", 0, 2)))
    for name in ("default", "model.layers"):
        modules = {name: {"slices": stack_of(("A", 0, 2))["slices"]}}
        plan = plan_letters(pair, {"merge_method": "passthrough", "modules": modules})
        assert plan.tensors == plain.tensors


def test_towers_have_gradients_of_their_own(pair: Path) -> None:
    tower = {f"vision.blocks.{n}.weight": torch.ones(2) for n in range(3)}
    for letter in ("A", "B"):
        edit_tensors(pair / letter, **tower)
    tensors = by_name(plan_letters(pair, WHOLE | {"parameters": {"weight": [0, 1]}}))
    weights = [tensors[name].parameters["weight"][0] for name in tower]
    assert weights == [0.0, 0.5, 1.0]
    assert tensors["model.layers.1.mlp.up_proj.weight"].parameters["weight"] == (0.5, 0.5)


def test_statistics_go_with_their_model(pair: Path) -> None:
    models = [{"model": m, "statistics": f"stats/{m}"} for m in ("A", "B")]
    for model in models:
        (pair / model["statistics"]).mkdir(parents=True)
        model["statistics"] = str(pair / model["statistics"])
    plan = plan_letters(pair, {"merge_method": "fisher", "models": models})
    assert [o.statistics for o in plan.tensors[0].operands] == [
        pair / "stats" / "A", pair / "stats" / "B",
    ]  # fmt: skip


def test_a_vocabulary_is_found_without_its_size(pair: Path) -> None:
    edit_config(pair / "A", vocab_size=None)
    plan = plan_letters(pair, stack_of(("A", 0, 3)))
    found = {tensor.name for tensor in plan.tensors if tensor.vocabulary}
    assert found == {"model.embed_tokens.weight", "lm_head.weight"}


def test_a_stack_is_numbered_from_0_without_a_gap() -> None:
    names = ["a.0.w", "a.1.w", "a.1.x.0.w", "b.1.w", "c.0.w", "c.2.w", "d.00.w", "e.w"]
    assert [(stack.prefix, stack.layers) for stack in find_stacks(names)] == [("a", 2)]


def test_equal_recipes_give_equal_plans(pair: Path) -> None:
    first, second = (plan_letters(pair, WHOLE) for _ in range(2))
    assert first == second


def test_a_bare_model_goes_with_a_whole_one(tmp_path: Path) -> None:
    for letter in ("A", "B"):
        save_tiny(tmp_path / letter, "gpt2")
    whole = load_file(tmp_path / "B" / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in whole.items()}
    # Old checkpoints keep the causal mask, too.
    old = {"h.0.attn.bias": torch.ones(1, 1, 4, 4), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    edit_tensors(tmp_path / "B", **dict.fromkeys(whole), **bare, **old)
    for first, second in (("A", "B"), ("B", "A")):
        models = [{"model": first}, {"model": second}]
        plan = plan_letters(tmp_path, WHOLE | {"models": models})
        held = whole if first == "A" else bare
        assert {tensor.name for tensor in plan.tensors} == set(held)
        names = {"A": set(whole), "B": set(bare)}
        for tensor in plan.tensors:
            assert all(o.tensor in names[o.ref.model] for o in tensor.operands)
