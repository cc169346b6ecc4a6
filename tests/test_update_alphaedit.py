"""AlphaEdit: nothing is written where the corpus reads, nor at the keys of earlier edits."""

import pytest
import torch
from torch import Tensor

from brickwork.errors import EditError
from brickwork.update.alphaedit import null_space, null_space_whitened
from brickwork.update.edit import Edit
from brickwork.update.facts import Fact
from brickwork.update.harm import bounded_reader
from brickwork.update.method import EditContext, EditSite
from brickwork.update.plan import Asked, plan_edit
from tests.edits import covariance_of, edited, identity_of, scores
from tests.world import corpus, world

SITE = EditSite((2, 3, 4), "last")


def plan(context: EditContext, facts: list[Fact], **options: float) -> Edit:
    return plan_edit(context, facts, Asked("alphaedit", {"contexts": 2, **options}))


def reader(keys: Tensor, earlier: Tensor, free: Tensor, penalty: float) -> Tensor:
    white, eye = null_space_whitened(keys, earlier, free, penalty), torch.eye(keys.shape[1])
    return bounded_reader(keys, white, keys[:, :1], eye.double(), weight=1.0, most=1e9)


def test_the_null_space_holds_at_most_its_share_of_the_energy() -> None:
    generator = torch.Generator().manual_seed(0)
    spread = torch.logspace(-6, 0, 12, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(12, 12, generator=generator, dtype=torch.float64)).Q
    C = basis * spread @ basis.T
    free = null_space(C, 1e-3)
    expected = int((spread.cumsum(0) <= 1e-3 * spread.sum()).sum())
    assert free.shape == (12, expected)
    torch.testing.assert_close(free.T @ free, torch.eye(expected, dtype=torch.float64))
    assert float(torch.trace(free.T @ C @ free)) <= 1e-3 * float(torch.trace(C))


def test_the_reader_equals_the_formula_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, earlier, some = (
        torch.randn(rows, 9, generator=generator, dtype=torch.float64) for rows in (3, 2, 5)
    )
    free = torch.linalg.svd(some).Vh[5:].T
    P, K, Kp = free @ free.T, keys.T, earlier.T
    penalty = 0.3 * (P @ K).square().sum(0).median()
    eye = torch.eye(9, dtype=torch.float64)
    expected = torch.linalg.solve(P @ (K @ K.T + Kp @ Kp.T) + penalty * eye, P @ K).T
    # Both solve in float64.
    torch.testing.assert_close(reader(keys, earlier, free, 0.3), expected)


def test_a_key_that_was_edited_before_is_left_alone() -> None:
    keys, earlier = torch.eye(6, dtype=torch.float64)[:1] + 1, torch.ones(1, 6).double()
    free = torch.eye(6, dtype=torch.float64)
    alone = reader(keys, earlier[:0], free, 1e-3)
    after = reader(keys, 100 * earlier, free, 1e-3)
    assert abs(float(after @ earlier.T)) < 0.01 * abs(float(alone @ earlier.T))


def test_the_world_learns_in_a_sequence_of_batches() -> None:
    loaded = world().loaded
    facts = world().edits(12, seed=3)
    covariance = covariance_of(loaded, corpus(400), SITE.layers)
    context = EditContext(loaded, SITE, covariance)
    one = plan(context, facts[:6])
    with edited(loaded, one.brick):
        two = plan(EditContext(loaded, SITE, covariance, earlier=one.keys), facts[6:])
        with edited(loaded, two.brick):
            found = scores(loaded, facts)
    assert found.s >= 90
    assert found.nb_strict >= 90
    path = next(iter(two.keys))
    # Float32 factors of a projection in float64.
    free = null_space(covariance(2).matrix, 1e-2)
    A = two.brick.tensors[f"{path}/A"].double()
    assert (A - A @ free @ free.T).norm() < 1e-5 * A.norm()


def test_a_corpus_that_reads_everything_is_refused() -> None:
    loaded = world().loaded
    context = EditContext(loaded, EditSite((3,), "last"), identity_of(loaded))
    with pytest.raises(
        EditError, match=r"reads every direction of layer 3 .* raise the option energy"
    ):
        plan(context, world().edits(1), steps=10, energy=1e-3)
