"""METHODS: the laws that every row inherits, so that a new row adds tests, and the refusals."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from brickwork.combine import operands as operands_module
from brickwork.combine.method import Method
from brickwork.combine.methods import find_method, merge_tensors, methods, require_count
from brickwork.errors import MergeError, UnknownNameError

ROWS = list(methods().values())
SHAPES = [(7, 5), (1, 9), (9, 1), (5,), (1,), (), (2, 3, 4), (257, 3)]
# What a recipe must say, at values under which a method has something to do.
REQUIRED = {"weight": 0.7, "t": 0.4}
# What rounding once to the dtype leaves, with some more for sums in float32.
DTYPES = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def every_row(test: Any) -> Any:
    return pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)(test)


def tensors_of(count: int, shape: tuple[int, ...] = (7, 5), seed: int = 0) -> list[Tensor]:
    chance = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=chance) for _ in range(count)]


def count_of(row: Method) -> int:
    return max(row.least, 3) if row.most is None else row.most


def settings(row: Method, **given: Any) -> dict[str, Any]:
    needed = {p.name: REQUIRED[p.name] for p in row.parameters if p.default is None}
    known = {p.name for p in row.parameters}
    return needed | {name: value for name, value in given.items() if name in known}


def statistics_of(row: Method, count: int, shape: tuple[int, ...]) -> list[Tensor]:
    if row.statistics == "fisher":
        return [t.square() for t in tensors_of(count, shape, seed=9)]
    if row.statistics == "gram" and len(shape) == 2:
        return [(x := t).T @ x for t in tensors_of(count, (40, shape[1]), seed=9)]
    return []


def merge(row: Method, tensors: list[Tensor], base: Tensor | None, **given: Any) -> Tensor:
    statistics = given.pop("statistics", None)
    if statistics is None:
        statistics = statistics_of(row, len(tensors), tuple(tensors[0].shape))
    seed, keys = given.pop("seed", 0), given.pop("keys", None)
    with_base = base if row.base == "required" else None
    return merge_tensors(
        row.name, tensors, base=with_base, statistics=statistics, seed=seed, keys=keys,
        **settings(row, **given),
    )  # fmt: skip


@every_row
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_shape_gives_finite_values_of_that_shape(row: Method, shape: tuple[int, ...]) -> None:
    base, *tensors = tensors_of(count_of(row) + 1, shape)
    for density in (0.0, 0.5, 1.0):
        merged = merge(row, tensors, base, density=density, select_topk=density)
        assert merged.shape == shape
        assert merged.isfinite().all()


@every_row
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)], ids=str)
def test_an_empty_tensor_stays_empty(row: Method, shape: tuple[int, ...]) -> None:
    base, *tensors = tensors_of(count_of(row) + 1, shape)
    assert merge(row, tensors, base, statistics=[]).shape == shape


@every_row
def test_the_dtype_is_kept_and_values_are_rounded_once(row: Method) -> None:
    base, *tensors = [0.1 * t for t in tensors_of(count_of(row) + 1)]
    for dtype, tolerance in DTYPES.items():
        low = [t.to(dtype) for t in tensors]
        merged = merge(row, low, base.to(dtype), density=0.5)
        assert merged.dtype == dtype
        # The same merge in float64 of the same values: what differs is arithmetic and rounding.
        exact = merge(row, [t.double() for t in low], base.to(dtype).double(), density=0.5)
        if row.name not in {"ram", "ramplus_tl"}:  # their threshold may fall between dtypes
            torch.testing.assert_close(merged.double(), exact, rtol=tolerance, atol=tolerance)


@every_row
def test_models_that_are_all_the_base_give_the_base(row: Method) -> None:
    (base,) = tensors_of(1)
    merged = merge(row, [base.clone() for _ in range(count_of(row))], base)
    torch.testing.assert_close(merged, base)  # averages of equal numbers round


# arcee_fusion takes only a part of the other model by design, whatever its settings.
@pytest.mark.parametrize(
    "row", [row for row in ROWS if row.name != "arcee_fusion"], ids=lambda row: row.name
)
def test_one_operand_alone_is_itself(row: Method) -> None:
    base, tensor = tensors_of(2)
    count = max(row.least, 1)
    merged = merge(row, [tensor] * count, base, weight=1.0 / count, t=1.0 if row.name == "slerp"
                   else 1e9, epsilon=1e-9)  # fmt: skip
    # Adding a change to the base, and weights of 1/n, round.
    torch.testing.assert_close(merged, tensor, rtol=1e-5, atol=1e-6)


@every_row
def test_the_order_of_operands_does_not_matter(row: Method) -> None:
    count = count_of(row)
    base, *tensors = tensors_of(count + 1)
    statistics = statistics_of(row, count, (7, 5))
    keys = [f"model {number}" for number in range(count)]
    weight = [0.2 + 0.3 * number for number in range(count)]
    one = merge(row, tensors, base, weight=weight, density=0.5, keys=keys, statistics=statistics)
    other = merge(
        row, tensors[::-1], base, weight=weight[::-1], density=0.5, keys=keys[::-1],
        statistics=statistics[::-1],
    )  # fmt: skip
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)  # sums in another order round


@every_row
def test_equal_seeds_give_equal_bits_and_other_seeds_do_only_where_nothing_is_random(
    row: Method,
) -> None:
    base, *tensors = tensors_of(count_of(row) + 1, (40, 40))
    one, again, other = (
        merge(row, tensors, base, density=0.5, seed=seed, statistics=[]) for seed in (1, 1, 2)
    )
    assert torch.equal(one, again)
    assert torch.equal(one, other) != row.random


@every_row
def test_the_size_of_pieces_does_not_matter(row: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    base, *tensors = tensors_of(count_of(row) + 1, (13, 5))
    whole = merge(row, tensors, base, density=0.5, select_topk=0.3)
    monkeypatch.setattr(operands_module, "PIECE", 10)
    by_pieces = merge(row, tensors, base, density=0.5, select_topk=0.3)
    if row.random:  # random streams restart at every piece
        assert by_pieces.isfinite().all()
    else:  # sums over a tensor are taken in another order
        torch.testing.assert_close(by_pieces, whole, rtol=1e-5, atol=1e-6)


@every_row
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_are_refused_with_the_models_name(row: Method, value: float) -> None:
    base, *tensors = tensors_of(count_of(row) + 1)
    tensors[-1][3, 2] = value
    keys = [f"model {number}" for number in range(len(tensors))]
    with pytest.raises(MergeError, match=rf"'tensor' of 'model {len(tensors) - 1}' holds NaN"):
        merge(row, tensors, base, keys=keys)


@every_row
def test_how_a_tensor_lies_in_memory_does_not_matter(row: Method) -> None:
    def laid(tensor: Tensor, *, turned: bool) -> Tensor:
        rounded = tensor.round()  # many equal values: places at a threshold are shared out
        return rounded.T.contiguous().T if turned else rounded

    given = {"density": 0.5, "select_topk": 0.5}
    found = []
    for turned in (False, True):
        base, *tensors = (laid(t, turned=turned) for t in tensors_of(count_of(row) + 1, (17, 23)))
        found.append(merge(row, tensors, base, **given))
    assert torch.allclose(*found, rtol=1e-5, atol=1e-5)  # float32 sums in another order


@every_row
def test_operands_are_not_changed(row: Method) -> None:
    base, *tensors = tensors_of(count_of(row) + 1)
    before = [t.clone() for t in (base, *tensors)]
    merge(row, tensors, base, density=0.5, select_topk=0.5)
    assert all(torch.equal(a, b) for a, b in zip(before, (base, *tensors), strict=True))


@every_row
def test_a_row_is_complete(row: Method) -> None:
    assert row.meaning
    assert row.source
    for parameter in row.parameters:
        assert parameter.meaning
        if parameter.kind == "switch":
            assert isinstance(parameter.default, bool)


def test_no_operands_beside_a_base_give_the_base() -> None:
    (base,) = tensors_of(1)
    alone = [row for row in ROWS if row.base == "required" and row.least == 0]
    assert len(alone) == 11
    for row in alone:
        assert torch.equal(merge_tensors(row.name, [], base=base, **settings(row)), base)


def test_operands_of_mixed_dtypes_are_computed_in_the_widest() -> None:
    low, high = torch.tensor([1.0]), torch.tensor([1e-12], dtype=torch.float64)
    merged = merge_tensors("linear", [high, low], weight=1.0, normalize=False)
    assert merged.item() == 1.0 + 1e-12


def test_weights_that_sum_to_nothing_are_refused() -> None:
    for name in ("linear", "multislerp"):
        with pytest.raises(MergeError, match=r"weights \[1.0, -1.0\] at 'tensor' sum to 0"):
            merge_tensors(name, tensors_of(2), weight=[1.0, -1.0])


def test_an_unknown_method_and_an_unknown_parameter_name_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'karcher'"):
        find_method("karchr")
    with pytest.raises(UnknownNameError, match="did you mean 'density'"):
        merge_tensors("ties", tensors_of(1), base=tensors_of(1)[0], weight=1.0, densty=0.5)


def test_a_missing_parameter_and_too_few_values_are_refused() -> None:
    with pytest.raises(MergeError, match="linear needs the parameter 'weight'; give it"):
        merge_tensors("linear", tensors_of(2))
    with pytest.raises(MergeError, match="2 values of 'weight' for 3 operands"):
        merge_tensors("linear", tensors_of(3), weight=[1.0, 2.0])


def test_statistics_that_nobody_asked_for_or_that_are_too_few_are_refused() -> None:
    with pytest.raises(MergeError, match="got 2 statistics for 2 operands; give none"):
        merge_tensors("linear", tensors_of(2), statistics=tensors_of(2), weight=1.0)
    with pytest.raises(MergeError, match="got 1 statistics for 2 operands; give 2, or none"):
        merge_tensors("fisher", tensors_of(2), statistics=tensors_of(1))


def test_a_wrong_number_of_operands_is_refused() -> None:
    with pytest.raises(MergeError, match="ties needs a base, and there is none"):
        merge_tensors("ties", tensors_of(2), weight=1.0)
    with pytest.raises(MergeError, match="slerp needs 1 operands beside the base, but there are 2"):
        require_count(find_method("slerp"), 2, True)
    with pytest.raises(MergeError, match="model_stock needs at least 2 operands beside the base"):
        require_count(find_method("model_stock"), 1, True)
    with pytest.raises(MergeError, match=r"needs tensors of one shape, got \[\(2,\), \(3,\)\]"):
        merge_tensors("linear", [torch.zeros(2), torch.zeros(3)], weight=1.0)
