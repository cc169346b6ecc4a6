"""Grown checkpoints: streamed from disk to disk, and read by plain transformers."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from brickwork.errors import BrickworkError, ConfigurationError, GrowthError, ModelError
from brickwork.grow.fresh import Fresh, fresh_masks
from brickwork.grow.recipe import (
    GrownModel,
    GrowthRecipe,
    grow_by_recipe,
    load_grown,
    read_recipe,
    sizes_of,
    write_grown,
)
from brickwork.grow.record import read_growth
from brickwork.model.load import load_model
from brickwork.model.stream import write_weights
from brickwork.model.weights import CheckpointWeights, ModelWeights
from tests.tiny import tiny_model, tiny_tokenizer

RECIPES = {
    "llama": "steps: [{part: experts, by: upcycle, options: {experts: 4}}]",
    "qwen3_moe": "steps: [{part: experts, by: copies}]",
    "mixtral": "steps: [{part: width, by: split, options: {times: 2}}]",
    "gpt2": "steps: [{part: hidden, by: duplicate, options: {times: 2}}]",
    "gemma3_text": "steps: [{part: depth, by: identity, options: {after: [0]}}, "
    "{part: width, by: zero, options: {neurons: 64}}]",
    "opt": "steps: [{part: context, by: extend, options: {tokens: 96}}]",
    "qwen2": "steps: [{part: vocab, by: mean, options: {tokens: [the the]}}]",
}


def saved(family: str, folder: Path, *, shard: str = "5GB") -> Path:
    model = tiny_model(family)
    model.save_pretrained(folder, max_shard_size=shard)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def planned(source: Path, recipe: str) -> GrownModel:
    file = source / "recipe.yaml"
    file.write_text(recipe)
    tokenizer = load_model(str(source)).tokenizer
    return grow_by_recipe(CheckpointWeights(source), read_recipe(file), tokenizer=tokenizer)


@pytest.mark.parametrize("family", RECIPES)
def test_what_is_streamed_is_what_is_grown_in_memory_to_the_bit(
    family: str, tmp_path: Path
) -> None:
    source = saved(family, tmp_path / "old", shard="40KB")
    grown = planned(source, RECIPES[family])
    write_grown(grown, source, "old", tmp_path / "new")
    old = load_model(str(source))
    expected = load_grown(
        grow_by_recipe(
            ModelWeights(old.model), read_recipe(source / "recipe.yaml"), tokenizer=old.tokenizer
        ),
        old,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, report = AutoModelForCausalLM.from_pretrained(
            tmp_path / "new", output_loading_info=True
        )
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    wanted = dict(expected.model.named_parameters())
    for path, parameter in found.named_parameters():
        assert torch.equal(parameter, wanted[path]), path
    ids = torch.randint(2, 100, (2, 20))
    with torch.no_grad():
        before, after = (m(input_ids=ids).logits[..., :101] for m in (old.model, found.eval()))
    # Sums in another order, in float32.
    assert torch.allclose(before, after, atol=1e-4, rtol=0)


def test_a_large_checkpoint_is_written_in_shards_that_are_read_again(tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "old")
    grown = planned(source, "steps: [{part: width, by: split, options: {times: 2}}]")
    write_weights(grown.weights, tmp_path / "new", {}, shard_bytes=20_000)
    assert len(list((tmp_path / "new").glob("*.safetensors"))) > 2
    again = CheckpointWeights(tmp_path / "new")
    for path, _ in again.outline.named_parameters():
        assert torch.equal(again.tensor(path), grown.weights.tensor(path))


def test_the_record_says_what_was_done_and_what_is_new(tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "old")
    write_grown(planned(source, RECIPES["llama"]), source, "small", tmp_path / "new")
    record = read_growth(tmp_path / "new")
    assert (record.model, record.steps[0].part, record.steps[0].keeps) == (
        "small", "experts", "all logits",
    )  # fmt: skip
    model = load_model(str(tmp_path / "new")).model
    masks = fresh_masks(model, record.fresh)
    assert set(masks) == {p for p, _ in model.named_parameters() if ".mlp." in p}
    with pytest.raises(GrowthError, match=r"does not say how it grew .there is none"):
        read_growth(source)


def test_new_tokens_are_in_the_tokenizer_that_is_written(tmp_path: Path) -> None:
    source = saved("qwen2", tmp_path / "old")
    write_grown(planned(source, RECIPES["qwen2"]), source, "old", tmp_path / "new")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "new")
    assert len(tokenizer("the the", add_special_tokens=False)["input_ids"]) == 1
    old = AutoTokenizer.from_pretrained(source)
    assert tokenizer("another day")["input_ids"] == old("another day")["input_ids"]


def test_a_new_token_begins_as_its_pieces_as_transformers_would_tell(tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "old")
    grown = planned(source, "steps: [{part: vocab, by: pieces, options: {tokens: [than]}}]")
    pieces = tiny_tokenizer()("than", add_special_tokens=False)["input_ids"]
    assert len(pieces) == 2
    for path in ("model.embed_tokens.weight", "lm_head.weight"):
        old = CheckpointWeights(source).tensor(path)
        # One rounding of a mean of two numbers.
        assert torch.allclose(grown.weights.tensor(path)[101], old[pieces].mean(0), atol=1e-7)


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    source = saved("mixtral", tmp_path / "old")
    grown = planned(source, RECIPES["mixtral"])
    sizes = sizes_of(grown.weights)
    write_grown(grown, source, "old", tmp_path / "new")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "new")
    assert sizes.parameters == sum(p.numel() for p in found.parameters())
    assert sizes.bytes == 4 * sizes.parameters


def test_bfloat16_stays_bfloat16(tmp_path: Path) -> None:
    tiny_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "old")
    weights = CheckpointWeights(tmp_path / "old")
    recipe = GrowthRecipe.model_validate(
        {"steps": [{"part": "hidden", "by": "zero-extend", "options": {"size": 48}}]}
    )
    write_grown(grow_by_recipe(weights, recipe), tmp_path / "old", "old", tmp_path / "new")
    found = load_model(str(tmp_path / "new")).model
    assert {p.dtype for p in found.parameters()} == {torch.bfloat16}


def test_a_checkpoint_of_several_formats_becomes_a_mixture_that_says_the_same(
    tmp_path: Path,
) -> None:
    """Its configuration says bfloat16, most of its tensors are float32, and the gates bfloat16."""
    source = saved("llama", tmp_path / "old")
    tensors = load_file(source / "model.safetensors")
    tensors = {n: t.bfloat16() if "gate_proj" in n else t for n, t in tensors.items()}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    write_grown(planned(source, RECIPES["llama"]), source, "old", tmp_path / "new")
    said = []
    for folder in (source, tmp_path / "new"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            said.append(model(input_ids=torch.arange(2, 30)[None]).logits)
    # Sums in another order, in float32; experts rounded to bfloat16 would show at 1e-2.
    assert torch.allclose(*said, atol=1e-4, rtol=0)


def test_a_longer_context_is_told_to_the_tokenizer(tmp_path: Path) -> None:
    source = saved("opt", tmp_path / "old")
    write_grown(planned(source, RECIPES["opt"]), source, "old", tmp_path / "new")
    lengths = [AutoTokenizer.from_pretrained(tmp_path / n).model_max_length for n in ("old", "new")]
    assert lengths == [64, 96]


def test_a_place_that_cannot_be_written_is_told_as_one(tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "old")
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="name a folder elsewhere"):
        write_weights(CheckpointWeights(source), tmp_path / "file" / "new", {})


def test_a_taken_place_is_refused_and_nothing_is_left_behind(tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "old")
    (tmp_path / "new").mkdir()
    with pytest.raises(ModelError, match="there already"):
        write_grown(planned(source, RECIPES["llama"]), source, "old", tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "old"]


def test_a_checkpoint_whose_tensors_are_others_is_refused(tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "old")
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(ModelError, match="gate_proj"):
        CheckpointWeights(source)


def test_a_tensor_that_lies_the_other_way_round_is_refused(tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "old")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.ones(32, 48)
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"up_proj.*\[32, 48\]"):
        CheckpointWeights(source)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("steps: []", "steps"),
        ("steps: [{part: width, by: split, options: {neuron: 3}}]", "neuron"),
        ("steps: [{part: width, by: split}]", "not at all"),
        ("steps: [{part: width, by: split, options: {neurons: 8}}]", "there are 48 already"),
        ("steps: [{part: wide, by: split}]", "width"),
        ("steps: [{part: width, by: splt}]", "split"),
        ("steps: [{part: depth, by: blocks, options: {blocks: 3}}]", "a divisor of 2"),
        ("steps: [{part: heads, by: queries, options: {heads: 7}}]", "a multiple of 2"),
        ("steps: [{part: hidden, by: duplicate, options: {size: 48}}]", "equal numbers of copies"),
        ("steps: [{part: depth, by: identity, options: {after: [9]}}]", "0 to 1"),
        ("steps: [{part: vocab, by: mean, options: {tokens: [the, a, a]}}]", "known already"),
        ("steps: [{part: vocab, by: mean, options: {tokens: [' a']}}]", "known already"),
        ("steps: [{part: width, by: split, options: {times: .inf}}]", "less than or equal to"),
        ("steps: [{part: width, by: zero, options: {neurons: 9000000000}}]", "less than or equal"),
        ("steps: [{part: experts, by: upcycle, options: {experts: 2, top_k: 3}}]", "at most"),
        ("steps: [{part: context, by: extend, options: {tokens: 9}}]", "64 already"),
    ],
)
def test_bad_recipes_are_refused_with_what_to_do(recipe: str, message: str, tmp_path: Path) -> None:
    source = saved("llama", tmp_path / "old")
    with pytest.raises(BrickworkError, match=message):
        planned(source, recipe)


def test_masks_name_the_parameter_that_a_model_lacks() -> None:
    model = tiny_model("llama")
    with pytest.raises(ConfigurationError, match="no such"):
        fresh_masks(model, [Fresh(parameter="nowhere")])
    with pytest.raises(ConfigurationError, match="name the model that the growth wrote"):
        fresh_masks(model, [Fresh(parameter="model.norm.weight", axis=0, spans=((30, 40),))])
