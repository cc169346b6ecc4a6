"""Statistics for merges: equal to slow loops, under the checkpoint's names, refused where wrong."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

from brickwork.errors import DataError, MergeError, ModelError
from brickwork.measure.grams import find_readers, linear_weights
from brickwork.measure.merge_statistics import (
    ABOUT,
    TENSORS,
    Measurement,
    collect_statistics,
    open_statistics,
    statistics_bytes,
)
from brickwork.model.export import write_checkpoint
from brickwork.model.load import wrap_model
from brickwork.model.saved import as_saved
from brickwork.model.shards import Shards
from brickwork.model.train import Encoded
from tests.test_measure_activations import instances
from tests.tiny import FAMILIES, tiny_model

# Experts that are not tapped run in a kernel that knows no float64.
EXACT = [family for family in FAMILIES if family not in {"mixtral", "qwen3_moe"}]
COUNT = 4


def slow_fisher(family: str, sequences: list[Encoded]) -> dict[str, Tensor]:
    """One backward pass for each instance, in float64 where the family can."""
    dtype = torch.float64 if family in EXACT else torch.float32
    model = tiny_model(family).to(dtype)
    names = dict(model.named_parameters())
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in names.items()}
    for sequence in sequences:
        ids, start = torch.tensor([sequence.ids]), sequence.response_start
        logits = model(ids).logits[0, start - 1 : -1]
        loss = cross_entropy(logits, ids[0, start:], reduction="sum")
        gradients = torch.autograd.grad(loss, list(names.values()), allow_unused=True)
        for name, gradient in zip(names, gradients, strict=True):
            if gradient is not None:  # an expert that no token was sent to
                total[name] += gradient.double() ** 2 / len(sequences)
    return total


def slow_gram(family: str, name: str, sequences: list[Encoded]) -> Tensor:
    """What a hook on the module sees, one sequence at a time without padding, in float64."""
    dtype = torch.float64 if family in EXACT else torch.float32
    model, seen = tiny_model(family).to(dtype), []
    module = model.get_submodule(name.removesuffix(".weight"))
    module.register_forward_pre_hook(lambda _m, args: seen.append(args[0].flatten(0, -2).double()))
    with torch.no_grad():
        for sequence in sequences:
            model(torch.tensor([sequence.ids]))
    x = torch.cat(seen)
    return x.T @ x / len(x)


@pytest.mark.parametrize("family", FAMILIES)
def test_fisher_equals_autograd_on_each_instance_alone(family: str, tmp_path: Path) -> None:
    loaded, sequences = wrap_model(tiny_model(family)), instances(COUNT)
    spec = collect_statistics(loaded, sequences, Measurement("fisher"), tmp_path / "s")
    found = open_statistics(tmp_path / "s", "fisher")
    expected = as_saved(loaded.model, slow_fisher(family, sequences))
    write_checkpoint(loaded.model, tmp_path / "model")
    shards = Shards(tmp_path / "model").tensors
    assert set(found.names) == set(expected) == set(shards)
    found.require(loaded.model.config.model_type, {n: held.shape for n, held in shards.items()})
    for name, tensor in expected.items():
        # Float32 gradients through two layers, relative to the largest square of the parameter.
        bound = 1e-4 * tensor.max().item() + 1e-12
        torch.testing.assert_close(found.tensor(name), tensor.float(), rtol=1e-3, atol=bound)
    assert spec.instances == COUNT
    assert spec.tokens == sum(len(s.ids) for s in sequences)
    assert spec.base == loaded.base.fingerprint


@pytest.mark.parametrize("family", FAMILIES)
def test_grams_equal_plain_hooks_without_padding(family: str, tmp_path: Path) -> None:
    loaded, sequences = wrap_model(tiny_model(family)), instances(COUNT)
    collect_statistics(loaded, sequences, Measurement("gram"), tmp_path / "s")
    found = open_statistics(tmp_path / "s", "gram")
    saved = as_saved(loaded.model, dict(loaded.model.named_parameters()))
    found.require(
        loaded.model.config.model_type, {name: tuple(t.shape) for name, t in saved.items()}
    )
    weights = linear_weights(loaded.model)
    assert len(found.names) == len(weights)
    for weight in weights:
        (name,) = as_saved(loaded.model, {weight: loaded.model.get_parameter(weight)})
        expected = slow_gram(family, weight, sequences)
        bound = 1e-5 * expected.abs().max().item()  # float32 sums of float32 activations
        torch.testing.assert_close(found.tensor(name), expected.float(), rtol=1e-4, atol=bound)


def test_maps_that_read_one_input_share_one_matrix() -> None:
    readers = find_readers(tiny_model("llama"))
    first = "model.layers.0.self_attn"
    assert readers.same[f"{first}.k_proj.weight"] == f"{first}.q_proj.weight"
    assert (
        readers.same["model.layers.1.mlp.up_proj.weight"] == "model.layers.1.mlp.gate_proj.weight"
    )
    assert "model.layers.0.mlp.down_proj.weight" in readers.sizes


def test_a_conv1d_says_that_its_weights_are_transposed(tmp_path: Path) -> None:
    loaded = wrap_model(tiny_model("gpt2"))
    collect_statistics(loaded, instances(2), Measurement("gram"), tmp_path / "s")
    found = open_statistics(tmp_path / "s")
    assert found.transposed("transformer.h.0.attn.c_proj.weight")
    # Checkpoints of old leave the prefix out.
    assert found.transposed("h.0.attn.c_proj.weight")
    assert torch.equal(
        found.tensor("h.0.mlp.c_fc.weight"), found.tensor("transformer.h.0.mlp.c_fc.weight")
    )


def test_sampled_labels_follow_the_model_and_the_seed(tmp_path: Path) -> None:
    loaded, sequences = wrap_model(tiny_model("llama")), instances(2)
    for name, labels, seed in (("a", "sampled", 1), ("b", "sampled", 1), ("c", "sampled", 2)):
        measurement = Measurement("fisher", labels=labels, seed=seed)
        collect_statistics(loaded, sequences, measurement, tmp_path / name)
    a, b, c = (load_file(tmp_path / name / TENSORS) for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert any(not torch.equal(a[name], c[name]) for name in a)


def test_sampled_fisher_of_many_draws_is_the_exact_expectation(tmp_path: Path) -> None:
    """For one token of response the expectation is a sum over the vocabulary."""
    loaded = wrap_model(tiny_model("llama"))
    sequence = Encoded([5, 9, 13, 7], 3)
    draws = 300
    measurement = Measurement("fisher", labels="sampled")
    collect_statistics(loaded, [sequence] * draws, measurement, tmp_path / "s")
    name, model = "model.norm.weight", loaded.model
    logs = model(torch.tensor([sequence.ids])).logits[0, 2].log_softmax(-1)
    parameter = model.get_parameter(name)
    exact = torch.zeros_like(parameter)
    for log in logs:
        (gradient,) = torch.autograd.grad(log, [parameter], retain_graph=True)
        exact += log.detach().exp() * gradient**2
    found = open_statistics(tmp_path / "s").tensor(name)
    assert found is not None
    # A mean of 300 draws with a relative spread near 2 each is within 5 standard errors.
    assert abs(found.sum() / exact.sum() - 1) < 5 * 2 / draws**0.5


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = tiny_model("llama")
    frozen = model.model.norm.weight.requires_grad_(False)
    kept = torch.ones_like(model.lm_head.weight)
    model.lm_head.weight.grad = kept
    collect_statistics(wrap_model(model), instances(2), Measurement("fisher"), tmp_path / "s")
    assert not frozen.requires_grad
    assert model.lm_head.weight.grad is kept
    assert model.model.embed_tokens.weight.grad is None
    hooks = [h for m in model.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
    assert not hooks


def test_a_budget_of_tokens_takes_random_instances_until_it_is_reached(tmp_path: Path) -> None:
    loaded, sequences = wrap_model(tiny_model("llama")), instances(12)
    longest = max(len(s.ids) for s in sequences)
    spec = collect_statistics(loaded, sequences, Measurement("gram", tokens=30), tmp_path / "s")
    assert 30 <= spec.tokens < 30 + longest
    assert spec.instances < 12


def test_the_size_that_is_announced_bounds_the_file(tmp_path: Path) -> None:
    loaded = wrap_model(tiny_model("phi3"))
    for kind in ("fisher", "gram"):
        collect_statistics(loaded, instances(2), Measurement(kind), tmp_path / kind)
        size = sum(t.numel() * 4 for t in load_file(tmp_path / kind / TENSORS).values())
        assert size <= statistics_bytes(loaded.model, kind) <= 4 * size


def test_refuses_another_model_kind_or_file(tmp_path: Path) -> None:
    loaded, folder = wrap_model(tiny_model("llama")), tmp_path / "s"
    collect_statistics(loaded, instances(2), Measurement("fisher"), folder)
    found = open_statistics(folder)
    with pytest.raises(MergeError, match="architecture 'llama'"):
        found.require("gpt2", {})
    shapes = {name: tuple(p.shape) for name, p in loaded.model.named_parameters()}
    with pytest.raises(MergeError, match=r"lm_head.weight has \[112, 32\], not \[110, 32\]"):
        found.require("llama", shapes | {"lm_head.weight": (110, 32)})
    with pytest.raises(MergeError, match=r"lm_head\.weight is no parameter"):
        found.require("llama", {n: s for n, s in shapes.items() if n != "lm_head.weight"})
    with pytest.raises(MergeError, match=r"'gram', but .* holds 'fisher'"):
        open_statistics(folder, "gram")
    with pytest.raises(DataError, match="there already"):
        collect_statistics(loaded, instances(2), Measurement("fisher"), folder)
    tensors = load_file(folder / TENSORS)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / TENSORS)
    with pytest.raises(MergeError, match="is not the file"):
        open_statistics(folder)
    (folder / ABOUT).write_text('{"kind": "fisher"}')
    with pytest.raises(MergeError, match="describes no statistics"):
        open_statistics(folder)
    with pytest.raises(MergeError, match="brickwork statistics"):
        open_statistics(tmp_path)
    with pytest.raises(DataError, match="0 instances"):
        collect_statistics(loaded, [], Measurement("gram"), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_statistics_of_some_sites_are_no_statistics_for_a_merge(tmp_path: Path) -> None:
    loaded = wrap_model(tiny_model("llama"))
    some = Measurement("gram", sites=("layers.0.attn.k", "layers.0.attn.q"))
    spec = collect_statistics(loaded, instances(2), some, tmp_path / "s")
    assert spec.same == {
        "model.layers.0.self_attn.k_proj.weight": "model.layers.0.self_attn.q_proj.weight"
    }
    shapes = {name: tuple(p.shape) for name, p in loaded.model.named_parameters()}
    with pytest.raises(MergeError, match=r"are of layers\.0\.attn\.k, .* \(2 sites\), and a merge"):
        open_statistics(tmp_path / "s").require("llama", shapes)


def test_statistics_from_before_there_were_sites_are_of_all(tmp_path: Path) -> None:
    loaded = wrap_model(tiny_model("llama"))
    collect_statistics(loaded, instances(2), Measurement("gram"), tmp_path / "s")
    about = json.loads((tmp_path / "s" / ABOUT).read_text())
    del about["sites"]
    (tmp_path / "s" / ABOUT).write_text(json.dumps(about))
    assert open_statistics(tmp_path / "s").spec.sites == ()


def test_a_map_whose_padding_cannot_be_told_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.lm_head.register_forward_pre_hook(lambda _module, args: (args[0][:, -1:],))
    with pytest.raises(ModelError, match=r"'lm_head.weight' reads 2 positions of \d+"):
        collect_statistics(wrap_model(model), instances(2), Measurement("gram"), tmp_path / "s")
