"""Combining bricks: PEFT runs the result, dense sums in float64, the best rank, and refusals."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from brickwork.brick.brick import Brick
from brickwork.brick.folder import read_brick, write_brick
from brickwork.brick.spec import Function
from brickwork.combine.brick_forms import FORM_RULES
from brickwork.combine.bricks import combine_bricks
from brickwork.combine.methods import find_method, merge_tensors, methods
from brickwork.errors import BrickFormatError, MergeError, UnknownNameError
from brickwork.measure.updates import products_at, site_seed
from brickwork.model.load import LoadedModel, wrap_model
from tests.bricks import FORMS, paper_base, random_brick
from tests.tiny import tiny_model

BASE = paper_base(hidden=16)
LINEAR = [site.path for site in BASE.of_kind("linear") if site.layer is not None]
IDS = torch.tensor([[5, 9, 40, 3, 77, 21]])


def lora(seed: int, *, sites: list[str] = LINEAR, base: Any = BASE, **spec: Any) -> Brick:
    chance = torch.Generator().manual_seed(seed)
    options = {"alpha": 2.0 + seed, "rslora": bool(seed % 2)}
    fields = {"name": f"brick-{seed}", "options": options, **spec}
    return random_brick("lora", base, chance, sites=sites, **fields)


def formed(brick: Brick, site: str) -> Tensor:
    """The update as a whole matrix in float64, from nothing but the definition of LoRA."""
    slots = brick.by_site.get(site)
    if slots is None:
        return torch.zeros(())
    rank, options = slots["A"].shape[0], brick.spec.options
    alpha = options.get("alphas", {}).get(site, options["alpha"])  # type: ignore[union-attr]
    scaling = alpha / (rank**0.5 if options.get("rslora") else rank)
    return scaling * (slots["B"].double() @ slots["A"].double())


def distance(found: Tensor, wanted: Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "mixtral"])
def test_peft_says_with_the_combined_adapter_what_the_model_says_with_the_sum(
    family: str, tmp_path: Path
) -> None:
    model = tiny_model(family)
    loaded = wrap_model(model)
    paths = [site.path for site in loaded.base.of_kind("linear") if site.layer is not None]
    bricks = [lora(1, sites=paths, base=loaded.base), lora(2, sites=paths[::2], base=loaded.base)]
    combined = combine_bricks(
        bricks, "linear", parameters={"weight": [0.5, -1.5], "normalize": False}, name="both"
    )
    write_brick(combined.brick, tmp_path / "both")
    expected = _logits_with(loaded, bricks, (0.5, -1.5))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT says that it sets fan_in_fan_out itself
        adapted = PeftModel.from_pretrained(tiny_model(family), str(tmp_path / "both"))
    with torch.no_grad():
        found = adapted.eval()(IDS).logits
    # float32 sums in another order, through two layers
    assert distance(found, expected) < 1e-4


def _logits_with(loaded: LoadedModel, bricks: list[Brick], weights: tuple[float, ...]) -> Tensor:
    model = loaded.model
    with torch.no_grad():
        for brick, weight in zip(bricks, weights, strict=True):
            for site in brick.spec.sites:
                module = model.get_submodule(site)
                update = (weight * formed(brick, site)).float()
                module.weight += update.T if isinstance(module, Conv1D) else update  # type: ignore[operator]
        logits: Tensor = model(IDS).logits
    return logits


@settings(max_examples=25)
@given(
    st.lists(st.floats(-2, 2).filter(lambda w: abs(w) > 0.01), min_size=1, max_size=3),
    st.integers(1, 12),
)
def test_a_weighted_sum_is_exact_and_its_shortening_the_best_of_that_rank(
    weights: list[float], rank: int
) -> None:
    bricks = [lora(seed, sites=LINEAR[seed : seed + 2]) for seed in range(len(weights))]
    parameters = {"weight": weights, "normalize": False}
    exact = combine_bricks(bricks, "linear", parameters=parameters)
    short = combine_bricks(bricks, "linear", parameters=parameters, rank=rank)
    for site in exact.brick.spec.sites:
        wanted = sum(
            (w * formed(b, site) for w, b in zip(weights, bricks, strict=True)), torch.zeros(())
        )
        # factors are rounded to float32 once
        assert distance(formed(exact.brick, site), wanted) < 1e-6
        assert exact.errors[site] == 0
        sizes = torch.linalg.svdvals(wanted)
        best = (sizes[rank:].norm() / sizes.norm()).item()
        assert distance(formed(short.brick, site), wanted) == pytest.approx(best, abs=1e-6)
        assert short.errors[site] == pytest.approx(best, abs=1e-6)
        assert short.brick.by_site[site]["A"].shape[0] <= rank


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("linear", {"weight": [1.0, 3.0]}),
        ("task_arithmetic", {"weight": [1.0, -0.5], "lambda": 0.7}),
        ("slerp", {"t": 0.3}),
        ("nuslerp", {"weight": [0.4, 0.6]}),
        ("multislerp", {"weight": [0.4, 0.6]}),
        ("karcher", {}),
        ("model_stock", {}),
        ("ties", {"weight": [1.0, 1.0], "density": 0.5}),
        ("sce", {"select_topk": 0.5}),
        ("dare_linear", {"weight": [1.0, 1.0], "density": 0.5}),
        ("nearswap", {"t": 0.01}),
        ("arcee_fusion", {}),
        ("model_stock", {"filter_wise": True}),
        ("nuslerp", {"weight": [0.4, 0.6], "nuslerp_flatten": False}),
    ],
)
def test_every_method_merges_the_products_and_never_the_factors(
    method: str, parameters: dict[str, Any]
) -> None:
    bricks = [lora(1), lora(2)]
    combined = combine_bricks(bricks, method, parameters=parameters, rank=16, seed=3)
    site = LINEAR[4]
    updates = [product.rows() for product in products_at(bricks, site)]
    base = torch.zeros_like(updates[0])
    keys = ["brick-1", "brick-2"]
    if method in {"slerp", "nearswap", "arcee_fusion"}:
        base, updates, keys = updates[0], updates[1:], keys[1:]
    with_base = {} if method in {"linear", "karcher"} else {"base": base}
    wanted = merge_tensors(
        method, updates, keys=keys, seed=site_seed(3, site), **with_base, **parameters
    )
    if not wanted.any():
        assert not formed(combined.brick, site).any()
    else:
        # rank 16 is whole here; the method's own arithmetic is in float32
        assert distance(formed(combined.brick, site), wanted.double()) < 2e-5


def test_equal_updates_with_other_factors_merge_to_the_same() -> None:
    brick, other = lora(1), lora(2)
    turned = dict(brick.tensors)
    for site in brick.spec.sites:
        turned[f"{site}/A"] = brick.tensors[f"{site}/A"] * 4
        turned[f"{site}/B"] = brick.tensors[f"{site}/B"] / 4
    for method in ("karcher", "ties"):
        parameters = {"weight": 1.0} if method == "ties" else {}
        one, two = (
            combine_bricks([first, other], method, parameters=parameters)
            for first in (brick, Brick(brick.spec, turned))
        )
        for site in LINEAR:
            assert distance(formed(one.brick, site), formed(two.brick, site)) < 1e-5  # float32


ALONE = [
    name
    for name, row in methods().items()
    if row.least <= 1 and row.most is None and not row.statistics
]


@pytest.mark.parametrize("method", ALONE)
def test_one_brick_alone_is_itself(method: str) -> None:
    brick = lora(1)
    known = {p.name for p in find_method(method).parameters}
    parameters = {"weight": 1.0} if "weight" in known else {}
    alone = combine_bricks([brick], method, parameters=parameters, rank=16).brick
    for site in LINEAR:
        # ram and breadcrumbs leave out the smallest or largest values, by their own defaults
        loose = 0.2 if method.startswith(("ram", "breadcrumbs")) else 1e-5
        assert distance(formed(alone, site), formed(brick, site)) < loose


@pytest.mark.parametrize("method", ["linear", "slerp", "karcher", "multislerp", "nuslerp"])
def test_a_brick_merged_with_its_double_is_itself(method: str) -> None:
    brick = lora(2)
    parameters = {"t": 0.3} if method == "slerp" else {"weight": 0.5}
    double = combine_bricks(
        [brick, brick], method, parameters={} if method == "karcher" else parameters
    ).brick
    assert len(set(double.spec.lineage.arguments["bricks"])) == 2  # type: ignore[arg-type]
    for site in LINEAR:
        assert distance(formed(double, site), formed(brick, site)) < 1e-6  # rounded to float32


def test_a_brick_that_lacks_a_site_counts_as_no_change_there() -> None:
    whole, part = lora(0), lora(2, sites=LINEAR[:2])
    combined = combine_bricks([whole, part], "linear", parameters={"weight": 1.0})
    alone = LINEAR[-1]
    assert distance(formed(combined.brick, alone), formed(whole, alone) / 2) < 1e-6
    assert any("brick-2" in note for note in combined.notes)
    elected = combine_bricks([whole, part], "ties", parameters={"weight": 1.0}, rank=16)
    # nobody votes against it, and only those that vote are averaged
    assert distance(formed(elected.brick, alone), formed(whole, alone)) < 1e-5


def test_the_random_methods_follow_the_seed_and_the_names_and_not_the_order() -> None:
    a, b = lora(1), lora(2)
    parameters = {"weight": 1.0, "density": 0.5}

    def merged(bricks: list[Brick], seed: int) -> Tensor:
        made = combine_bricks(bricks, "dare_linear", parameters=parameters, rank=16, seed=seed)
        return formed(made.brick, LINEAR[0])

    assert torch.equal(merged([a, b], 0), merged([a, b], 0))
    assert distance(merged([a, b], 0), merged([b, a], 0)) < 1e-5  # a sum in another order
    assert distance(merged([a, b], 1), merged([a, b], 0)) > 0.1


def test_the_result_says_where_it_comes_from_and_survives_its_folder(tmp_path: Path) -> None:
    words = [Function(text=f"Do {n}.", labels=("Math", n), exemplars=(n,)) for n in ("x", "y")]
    a = lora(1, function=words[0], licence="MIT")
    b = lora(2, function=words[1], licence="Apache-2.0")
    brick = combine_bricks([a, b], "linear", parameters={"weight": [1, 2]}, name="both").brick
    assert brick.spec.lineage.parents == (a.hash, b.hash)
    assert brick.spec.lineage.method == "combine: linear"
    assert brick.spec.lineage.arguments["parameters"] == {"weight": [1, 2]}
    assert brick.spec.licence == "Apache-2.0 AND MIT"
    assert brick.spec.function == Function(
        text="Do x. Do y.", labels=("Math", "x", "y"), exemplars=("x", "y")
    )
    write_brick(brick, tmp_path / "both")
    assert read_brick(tmp_path / "both") == brick


@pytest.mark.parametrize("form", ["bias", "steering", "ia3"])
def test_vectors_add_what_they_change(form: str) -> None:
    chance = torch.Generator().manual_seed(0)
    first = random_brick(form, BASE, chance, name="first")
    second = Brick(
        first.spec.model_copy(update={"name": "second"}),
        {name: torch.randn(t.shape, generator=chance) for name, t in first.tensors.items()},
    )
    weights = {"weight": [0.5, 2.0], "normalize": False}
    brick = combine_bricks([first, second], "linear", parameters=weights).brick
    still = 1.0 if form == "ia3" else 0.0
    for name, tensor in brick.tensors.items():
        parts = [first.tensors[name] - still, second.tensors[name] - still]
        assert torch.allclose(tensor, still + 0.5 * parts[0] + 2 * parts[1], atol=1e-5)  # float32
    if form == "ia3":
        alone = combine_bricks([first], "linear", parameters={"weight": 1.0}).brick
        assert all(torch.allclose(alone.tensors[n], t) for n, t in first.tensors.items())


@pytest.mark.parametrize(("form", "axis"), [("prompt", 0), ("prefix", 1)])
def test_learned_positions_stand_one_behind_the_other(form: str, axis: int) -> None:
    chance = torch.Generator().manual_seed(0)
    a, b = (random_brick(form, BASE, chance, name=name) for name in ("a", "b"))
    brick = combine_bricks([a, b], "concatenate").brick
    for name, tensor in brick.tensors.items():
        assert torch.equal(tensor, torch.cat([a.tensors[name], b.tensors[name]], axis))
    with pytest.raises(MergeError, match="means nothing; `concatenate` puts one behind"):
        combine_bricks([a, b], "linear", parameters={"weight": 1.0})


def test_learned_positions_at_other_sites_are_refused() -> None:
    a = random_brick("prefix", BASE, torch.Generator().manual_seed(0), name="a")
    first, *others = a.spec.sites
    spec = a.spec.model_copy(update={"name": "b", "sites": tuple(others)})
    b = Brick(spec, {n: t for n, t in a.tensors.items() if not n.startswith(f"{first}/")})
    for pair in ([a, b], [b, a]):
        with pytest.raises(MergeError, match=r"acts at other sites than.*run them together"):
            combine_bricks(pair, "concatenate")


@pytest.mark.parametrize("form", ["patch", "codebook", "memory"])
def test_entries_of_all_are_kept(form: str) -> None:
    chance = torch.Generator().manual_seed(0)
    sites = [site.path for site in BASE.of_kind("block")]
    a = random_brick(form, BASE, chance, name="a", sites=sites[:1])
    b = random_brick(form, BASE, chance, name="b", sites=sites[:2])
    shared = f"{sites[0]}/projection"
    if form == "memory":
        with pytest.raises(MergeError, match=r"projection' differs.*different spaces; run them"):
            combine_bricks([a, b], "concatenate")
        b = Brick(b.spec, {**b.tensors, shared: a.tensors[shared]})
    brick = combine_bricks([a, b], "concatenate").brick
    assert brick.spec.sites == tuple(sites[:2])
    for name, tensor in brick.tensors.items():
        parts = [own.tensors[name] for own in (a, b) if name in own.tensors]
        assert torch.equal(tensor, parts[0] if name == shared else torch.cat(parts))
    with pytest.raises(MergeError, match="answers to neither's; `concatenate` keeps"):
        combine_bricks([a, b], "linear", parameters={"weight": 1.0})


def test_masks_are_joined_or_cut() -> None:
    chance = torch.Generator().manual_seed(0)
    a = random_brick("mask", BASE, chance, name="a", sites=LINEAR[:2])
    b = random_brick("mask", BASE, chance, name="b", sites=LINEAR[1:3])
    any_of, all_of = (combine_bricks([a, b], m).brick for m in ("union", "intersection"))
    assert any_of.spec.sites == tuple(LINEAR[:3])
    shared = f"{LINEAR[1]}/keep"
    pair = np.stack([a.tensors[shared].numpy(), b.tensors[shared].numpy()])
    assert np.array_equal(any_of.tensors[shared].numpy(), pair.max(0))
    assert np.array_equal(all_of.tensors[shared].numpy(), pair.min(0))
    assert torch.equal(any_of.tensors[f"{LINEAR[0]}/keep"], a.tensors[f"{LINEAR[0]}/keep"])


def test_every_form_has_a_rule() -> None:
    assert set(FORM_RULES) == set(FORMS)


@pytest.mark.parametrize("form", ["skip", "exit", "router"])
def test_decisions_are_refused_with_the_reason(form: str) -> None:
    brick = random_brick(form, BASE, torch.Generator().manual_seed(0))
    with pytest.raises(MergeError, match=f"form {form} cannot become one: .*`brickwork run"):
        combine_bricks([brick, brick], "linear", parameters={"weight": 1.0})


def test_bricks_of_different_forms_or_bases_are_refused_with_every_reason() -> None:
    steering = random_brick("steering", BASE, torch.Generator().manual_seed(0))
    other = lora(2, base=paper_base(hidden=16, weights="weights-2"))
    with pytest.raises(MergeError, match=r"(?s)a lora and .* a steering.*base's weights differ"):
        combine_bricks([lora(1), steering, other], "linear", parameters={"weight": 1.0})


def test_sizes_that_differ_are_refused_with_the_site() -> None:
    chance = torch.Generator().manual_seed(0)
    for form, method in (("mask", "union"), ("prefix", "concatenate"), ("lora", "linear")):
        own, wide = (paper_base(hidden=hidden) for hidden in (8, 16))
        sites = LINEAR[:1] if form != "prefix" else None
        a, b = (random_brick(form, base, chance, sites=sites) for base in (own, wide))
        b = Brick(b.spec.model_copy(update={"base": a.spec.base}), b.tensors)
        with pytest.raises(MergeError, match=r"model.layers.0.*are for different models"):
            combine_bricks([a, b], method, parameters={"weight": 1.0} if form == "lora" else None)


def test_what_cannot_be_is_refused() -> None:
    bricks = [lora(1), lora(2)]
    with pytest.raises(MergeError, match="0 bricks were given"):
        combine_bricks([], "linear")
    with pytest.raises(UnknownNameError, match="did you mean 'linear'"):
        combine_bricks(bricks, "linaer")
    with pytest.raises(UnknownNameError, match="parameter of linear is called 'wieght'"):
        combine_bricks(bricks, "linear", parameters={"wieght": 1.0})
    with pytest.raises(MergeError, match="fisher statistics, which a brick does not carry"):
        combine_bricks(bricks, "fisher")
    with pytest.raises(MergeError, match="union is for bricks of the forms mask"):
        combine_bricks(bricks, "union")
    with pytest.raises(MergeError, match="a rank of 0 was asked for"):
        combine_bricks(bricks, "linear", parameters={"weight": 1.0}, rank=0)
    with pytest.raises(BrickFormatError, match="does not describe a brick: name"):
        combine_bricks(bricks, "linear", parameters={"weight": 1.0}, name="Not A Name")
