"""Interference: scipy's principal angles, plain numpy, chance by simulation, and whole models."""

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from brickwork.brick.brick import Brick
from brickwork.brick.durable import write_file
from brickwork.brick.files import json_bytes
from brickwork.combine.bricks import combine_bricks
from brickwork.combine.kept import examine
from brickwork.errors import DataError, MergeError
from brickwork.measure.interference import chance_overlap, compare_at, overlap
from brickwork.measure.interference_results import (
    INTERFERENCE_FILE,
    Beside,
    Interference,
    Kept,
    Pair,
    PairNumbers,
    SitePair,
)
from brickwork.measure.lowrank import Product, best_product, principal, share_bases, shorten
from brickwork.measure.model_updates import ModelUpdates
from brickwork.measure.updates import brick_updates, low_rank_updates, sites_of, values_of
from brickwork.report.interference import read_interference, write_interference_report
from tests.bricks import paper_base, random_brick
from tests.combine import write_model


def _random_product(
    chance: torch.Generator, rank: int, rows: int = 24, columns: int = 40
) -> Product:
    return Product(
        torch.randn(rank, columns, generator=chance), torch.randn(rows, rank, generator=chance), 0.7
    )


def _pairs(bricks: list[Brick]) -> list[Pair]:
    names = [str(place) for place in range(len(bricks))]
    sites = (brick_updates(bricks, site) for site in sites_of(bricks))
    return examine(names, sites, values=values_of(bricks)).pairs


def _lora(seed: int) -> Brick:
    base = paper_base(hidden=32)
    paths = [site.path for site in base.of_kind("linear") if site.layer is not None]
    chance = torch.Generator().manual_seed(seed)
    return random_brick("lora", base, chance, sites=paths, name=f"brick-{seed}")


def _scaled(brick: Brick, factor: float) -> Brick:
    tensors = {n: t * factor if n.endswith("/B") else t for n, t in brick.tensors.items()}
    return Brick(brick.spec, tensors)


def test_overlaps_are_those_of_scipys_principal_angles() -> None:
    chance = torch.Generator().manual_seed(0)
    a, b = _random_product(chance, 3), _random_product(chance, 5)
    numbers = compare_at(low_rank_updates("site", [a, b]), None)[0, 1].numbers
    for found, left, right, size in (
        (numbers.inputs, a.A.T, b.A.T, 40),
        (numbers.outputs, a.B, b.B, 24),
    ):
        angles = scipy.linalg.subspace_angles(left.double().numpy(), right.double().numpy())
        # scipy computes in float64; our factors were float32 to begin with, as its are
        assert found.value == pytest.approx(np.mean(np.cos(angles) ** 2), abs=1e-9)
        assert found.expected == pytest.approx(5 / size)


def test_cosines_and_conflicts_are_those_of_the_formed_products() -> None:
    chance = torch.Generator().manual_seed(1)
    a, b = _random_product(chance, 3), _random_product(chance, 5)
    numbers = compare_at(low_rank_updates("site", [a, b]), None)[0, 1].numbers
    whole = [0.7 * (p.B.double() @ p.A.double()).numpy() for p in (a, b)]
    product = whole[0] * whole[1]
    norms = [np.linalg.norm(each) for each in whole]
    assert numbers.cosine.value == pytest.approx(product.sum() / math.prod(norms), abs=1e-9)
    assert numbers.ratio == pytest.approx(norms[0] / norms[1])
    assert numbers.conflicts
    assert numbers.weighted
    assert numbers.conflicts.value == pytest.approx((product < 0).mean())
    # signs come from float32 products
    assert numbers.weighted.value == pytest.approx(
        -product[product < 0].sum() / np.abs(product).sum(), abs=1e-6
    )


def test_the_expected_overlap_is_that_of_random_subspaces() -> None:
    chance = torch.Generator().manual_seed(2)
    found = []
    for _ in range(200):
        a, b = (torch.linalg.qr(torch.randn(30, k, generator=chance)).Q for k in (4, 6))
        found.append(overlap(a, b))
    # 200 draws with a standard deviation of about 0.06 each
    assert np.mean(found) == pytest.approx(chance_overlap(4, 6, 30), abs=0.015)


def test_some_rows_give_the_same_shares_within_their_error() -> None:
    chance = torch.Generator().manual_seed(3)
    a, b = (_random_product(chance, 4, rows=600, columns=200) for _ in range(2))
    updates = low_rank_updates("site", [a, b])
    every = compare_at(updates, None)[0, 1].numbers.conflicts
    some = compare_at(updates, torch.arange(0, 600, 6))[0, 1].numbers.conflicts
    assert every
    assert some
    assert every.error == 0 < some.error < 0.02
    assert abs(every.value - some.value) < 4 * some.error  # four standard errors


def test_a_brick_and_itself_are_redundant_and_a_brick_and_its_negative_contradict() -> None:
    brick, other = _lora(0), _lora(1)
    double, opposite, apart = (
        _pairs([brick, them])[0] for them in (_scaled(brick, 2.0), _scaled(brick, -0.5), other)
    )
    assert double.verdict == "redundant"
    assert double.numbers
    assert double.numbers.ratio == pytest.approx(0.5)
    assert double.numbers.outputs.value == pytest.approx(1.0)
    assert opposite.verdict == "contradicting"
    assert opposite.numbers
    assert opposite.numbers.conflicts
    assert opposite.numbers.conflicts.value == 1.0
    assert apart.verdict == "independent"


def test_a_method_that_refuses_some_updates_is_left_out_with_the_reason() -> None:
    brick, other = _lora(1), _lora(2)
    kept = other.spec.sites[:2]  # elsewhere the other two are all there is, and cancel out
    part = Brick(
        other.spec.model_copy(update={"sites": kept}),
        {n: t for n, t in other.tensors.items() if n.rpartition("/")[0] in kept},
    )
    bricks = [brick, _scaled(brick, -1.0), part]
    sites = (brick_updates(bricks, site) for site in sites_of(bricks))
    found = examine(["a", "negative", "part"], sites, values=values_of(bricks))
    assert "cancel out" in found.left_out["multislerp"]
    assert {"linear", "ties"} <= {one.method for one in found.kept}
    assert "multislerp" not in {one.method for one in found.kept}


def test_bricks_that_write_to_the_same_directions_collide() -> None:
    brick, other = _lora(0), _lora(1)
    tensors = dict(other.tensors)
    for name in brick.tensors:
        if name.endswith("/B"):
            A = other.tensors[f"{name[:-2]}/A"]
            rank = brick.tensors[name].shape[1]
            tensors[name] = brick.tensors[name]
            tensors[f"{name[:-2]}/A"] = A[:1].repeat(rank, 1) + torch.randn(
                rank, A.shape[1], generator=torch.Generator().manual_seed(5)
            )
    pair = _pairs([brick, Brick(other.spec, tensors)])[0]
    assert pair.verdict == "colliding"
    assert "reweight" in pair.advice


def test_the_kept_shares_are_those_of_the_merged_brick() -> None:
    bricks = [_lora(0), _lora(1)]
    sites = (brick_updates(bricks, site) for site in sites_of(bricks))
    findings = examine(["brick-0", "brick-1"], sites, values=values_of(bricks))
    tried = {row.method: row for row in findings.kept}
    assert {"linear", "ties", "slerp", "dare_linear"} <= set(tried)
    assert "statistics" in findings.left_out["fisher"]
    for method in ("linear", "ties", "karcher", "slerp"):
        parameters = tried[method].parameters
        merged = combine_bricks(bricks, method, parameters=parameters, rank=32).brick
        for name, brick in zip(("brick-0", "brick-1"), bricks, strict=True):
            # rank 32 is whole at this width, so only float32 stands between the two
            assert tried[method].kept[name] == pytest.approx(_kept(merged, brick), abs=1e-4)


def _kept(merged: Brick, brick: Brick) -> float:
    inner = squares = 0.0
    for site in brick.spec.sites:
        A, B = (_formed(each, site) for each in (merged, brick))
        inner += float((A * B).sum())
        squares += float((B * B).sum())
    return inner / squares


def _formed(brick: Brick, site: str) -> Tensor:
    from brickwork.measure.updates import products_at

    return products_at([brick], site)[0].rows()


def test_sites_of_one_brick_alone_are_counted_and_the_pair_is_judged_on_the_others() -> None:
    brick = _lora(0)
    first = brick.spec.sites[:3]
    part = Brick(
        brick.spec.model_copy(update={"sites": first}),
        {n: t for n, t in brick.tensors.items() if n.rpartition("/")[0] in first},
    )
    pair = _pairs([brick, part])[0]
    assert (pair.only_a, pair.only_b, len(pair.sites)) == (len(brick.spec.sites) - 3, 0, 3)
    assert pair.verdict == "redundant"


def test_models_of_very_large_values_are_compared_and_infinity_is_refused(tmp_path: Path) -> None:
    large = {"w": torch.full((64, 64), 1e36)}  # finite, though their sum is not in float32
    write_model(tmp_path / "base", {"w": torch.zeros(64, 64)})
    write_model(tmp_path / "large", large)
    (site,) = ModelUpdates(tmp_path / "base", [tmp_path / "large"], ["large"]).sites(2)
    assert site.lengths.item() == pytest.approx(64e36, rel=1e-6)  # 1e36 rounded to float32
    write_model(tmp_path / "broken", {"w": torch.full((64, 64), math.inf)})
    with pytest.raises(MergeError, match="'w' of 'broken' or of its base holds NaN or infinity"):
        list(ModelUpdates(tmp_path / "base", [tmp_path / "broken"], ["broken"]).sites(2))


def test_vectors_are_compared_as_what_they_change() -> None:
    base = paper_base()
    chance = torch.Generator().manual_seed(0)
    brick = random_brick("steering", base, chance)
    assert _pairs([brick, brick])[0].verdict == "redundant"


def test_the_shortened_update_is_the_best_of_its_rank() -> None:
    chance = torch.Generator().manual_seed(4)
    products = [_random_product(chance, rank) for rank in (3, 5)]
    shared = share_bases(products)
    product, error = shorten(sum(shared.cores, torch.zeros(())), shared, 4)
    whole = sum(p.scaling * (p.B.double() @ p.A.double()) for p in products)
    assert isinstance(whole, Tensor)
    sizes = torch.linalg.svdvals(whole)
    best = (sizes[4:].norm() / sizes.norm()).item()
    assert error == pytest.approx(best, rel=1e-9)
    assert ((whole - product.rows()).norm() / whole.norm()).item() == pytest.approx(best, rel=1e-9)


def test_the_search_for_directions_of_a_large_matrix_comes_near_the_best() -> None:
    chance = torch.Generator().manual_seed(6)
    wide = torch.randn(700, 640, generator=chance) * torch.logspace(0, -2, 640)
    product, error = best_product(wide, 8, torch.Generator().manual_seed(0))
    sizes = torch.linalg.svdvals(wide)
    best = (sizes[8:].norm() / sizes.norm()).item()
    assert best <= error * (1 + 1e-6)
    assert error == pytest.approx(best, rel=1e-3)  # the last directions are nearly equal
    assert ((wide - product.rows()).norm() / wide.norm()).item() == pytest.approx(error, rel=1e-4)
    U, _, V = principal(wide, 8, torch.Generator().manual_seed(0))
    assert torch.allclose(U.T @ U, torch.eye(8), atol=1e-5)  # float32
    assert torch.allclose(V @ V.T, torch.eye(8), atol=1e-5)


def test_the_document_survives_json() -> None:
    bricks = [_lora(0), _lora(1)]
    sites = (brick_updates(bricks, site) for site in sites_of(bricks))
    found = examine(["a", "b"], sites, values=values_of(bricks))
    document = Interference(
        brickwork="0", kind="bricks", names=["a", "b"], base="paper", forms=["lora"] * 2,
        sites=found.sites, rank=None, rows="all", pairs=found.pairs, kept=found.kept,
        left_out=found.left_out, seed=0,
    )  # fmt: skip
    assert Interference.model_validate_json(document.model_dump_json()) == document


def test_a_page_has_room_for_many_pairs_and_a_document_without_methods_is_refused(
    tmp_path: Path,
) -> None:
    chance = Beside(value=0.2, expected=0.1)
    numbers = PairNumbers(
        cosine=chance, conflicts=None, weighted=None, inputs=chance, outputs=chance, ratio=1.0
    )
    site = SitePair(site="model.layers.0.mlp.up_proj", numbers=numbers, values=3)
    names = [f"brick-with-a-long-name-{n}" for n in range(16)]
    found = Interference.model_validate({
        "brickwork": "0", "kind": "bricks", "names": names, "base": "base",
        "forms": ["lora"] * len(names), "sites": dict.fromkeys(names, 1), "rank": None,
        "rows": "all", "left_out": {}, "seed": 0,
        "kept": [Kept(method="linear", parameters={}, kept=dict.fromkeys(names, 0.1),
                      cosine=dict.fromkeys(names, 0.3))],
        "pairs": [
            Pair(a=a, b=b, numbers=numbers, only_a=0, only_b=0, verdict="independent",
                 advice="none", sites=[site])
            for a, b in combinations(names, 2)
        ],
    })  # fmt: skip
    # A layout that finds no room warns, and a warning is an error here.
    assert write_interference_report(found, tmp_path / "page")
    bare = found.model_copy(update={"kept": []}).model_dump(mode="json")
    write_file(tmp_path / INTERFERENCE_FILE, json_bytes(INTERFERENCE_FILE, bare))
    with pytest.raises(DataError, match="kept: names no method"):
        read_interference(tmp_path)
