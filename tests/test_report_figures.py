"""The figures of the report: every row of the table draws, with the numbers of the document."""

import functools
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from brickwork.measure.results import Analysis, Interval, MaskedLoss
from brickwork.report.figures import FIGURES, FigureRow
from brickwork.report.html import Plate, draw_row
from brickwork.report.numbers import change
from brickwork.report.overlap import tree
from brickwork.report.perturbation import ordered_rows
from brickwork.report.style import svg_bytes
from tests.analysis import FUNCTIONS, synthetic_analysis

ODD = ("<script>alert('$x$')</script>", "翻訳 \\alpha_{2} and a name that does not end soon")
MANY = tuple(f"_functionality {number}" for number in range(11))
CASES = {
    "three layers": synthetic_analysis(),
    "one layer, two odd names": synthetic_analysis(1, ODD),
    "more functionalities than colours": synthetic_analysis(1, MANY),
}
ROWS = {row.name: row for row in FIGURES}


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    return CASES["three layers"]


@functools.cache
def plates(name: str, case: str) -> list[Plate]:
    return list(draw_row(ROWS[name], CASES[case]))


def figure_of(name: str, analysis: Analysis) -> Figure:
    """The first figure of a row."""
    row = ROWS[name]
    return row.draw(*next(iter(row.each(analysis))))


def axes_of(name: str, analysis: Analysis) -> list[Axes]:
    return figure_of(name, analysis).axes


def line(axes: Axes, label: str) -> list[float]:
    return next(list(each.get_ydata()) for each in axes.lines if each.get_label() == label)


def heat(axes: Axes) -> np.ndarray:
    """The numbers of a heat map, NaN where a cell is grey."""
    return np.ma.filled(axes.collections[0].get_array(), np.nan)


def cell_texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("row", FIGURES, ids=lambda row: row.name)
def test_every_figure_draws(row: FigureRow, case: str) -> None:
    for plate in plates(row.name, case):
        assert plate.png.startswith(b"\x89PNG")
        assert plate.svg.rstrip().endswith(b"</svg>")
        assert len(plate.caption) > 80
        assert "nan" not in plate.caption


def test_every_figure_is_there_for_a_whole_document_and_none_for_what_was_not_measured() -> None:
    drawn = {row.name: len(plates(row.name, "three layers")) for row in FIGURES}
    assert drawn == dict.fromkeys(ROWS, 1) | {"perturbation": 3}
    little = synthetic_analysis(2, sources=(), heads=False, attribution=False)
    missing = {row.name for row in FIGURES if not list(row.each(little))}
    assert missing == {"head-scores", "sources", "attribution"}


@pytest.mark.parametrize("name", ["neuron-scores", "perturbation", "overlap"])
def test_equal_input_gives_equal_bytes_whatever_the_caller_set(name: str) -> None:
    with mpl.rc_context({"font.size": 30, "lines.linewidth": 9, "svg.hashsalt": None}):
        again = list(draw_row(ROWS[name], synthetic_analysis(1, ODD)))
    once = plates(name, "one layer, two odd names")
    assert again == once
    assert [plate.png for plate in again] == [plate.png for plate in once]


def test_drawing_leaves_matplotlib_as_it_was(analysis: Analysis) -> None:
    before = dict(mpl.rcParams)
    svg_bytes(figure_of("sparsity", analysis), "sparsity")
    assert dict(mpl.rcParams) == before


def test_distributions_are_those_of_the_document(analysis: Analysis) -> None:
    left, right, *_ = axes_of("sparsity", analysis)
    for number, layer in enumerate(analysis.sparsity.layers):
        assert list(left.lines[number].get_xdata()) == analysis.sparsity.edges
        assert list(left.lines[number].get_ydata()) == layer.activation
        assert list(right.lines[number].get_ydata()) == layer.magnitude
    assert "67\u00a0% lie below 0.2" in left.texts[0].get_text()


def test_masking_shows_paired_increases_and_the_random_control(analysis: Analysis) -> None:
    panels = axes_of("masking", analysis)
    for axes, indicator in zip(panels, ("activation", "magnitude", "random"), strict=True):
        steps = [step for step in analysis.sparsity.masked if step.indicator == indicator]
        rises = [step.increase["Math"] for step in steps]
        assert line(axes, "Math") == pytest.approx([100 * rise.value for rise in rises])
        edge = axes.collections[FUNCTIONS.index("Math")].get_paths()[0].vertices[:, 1]
        bounds = {100 * bound for rise in rises for bound in (rise.low, rise.high)}
        assert set(edge) == bounds


def with_masked(analysis: Analysis, masked: Sequence[MaskedLoss]) -> Analysis:
    sparsity = analysis.sparsity.model_copy(update={"masked": list(masked)})
    return analysis.model_copy(update={"sparsity": sparsity})


@pytest.mark.parametrize(
    ("rise", "scale", "top"), [(0.01, "linear", None), (5.0, "symlog", 1e3), (1e43, "symlog", 1e6)]
)
def test_masking_ends_at_what_can_be_seen_also_where_the_whole_model_loses_nothing(
    analysis: Analysis, rise: float, scale: str, top: float | None
) -> None:
    nothing = Interval(value=0.0, low=0.0, high=0.0)
    much = Interval(value=rise, low=-0.2, high=10 * rise)
    masked = [
        step.model_copy(
            update={
                "losses": dict.fromkeys(FUNCTIONS, nothing),
                "increase": dict.fromkeys(FUNCTIONS, much if step.ratio else nothing),
            }
        )
        for step in analysis.sparsity.masked
    ]
    (plate,) = draw_row(ROWS["masking"], with_masked(analysis, masked))
    axes = plate.figure.axes[0]
    assert axes.get_yscale() == scale
    assert top is None or axes.get_ylim()[1] == pytest.approx(1.3 * top)
    assert plate.png.startswith(b"\x89PNG")


def test_masking_says_what_random_neurons_do_or_that_nobody_looked(analysis: Analysis) -> None:
    (caption,) = captions(analysis, ["masking"])
    assert "Control, any neurons at random: masking 10\u00a0% changes it by +51\u00a0%" in caption
    assert "masking as many of the weakest changes it by +6.7\u00a0% by activation" in caption
    weakest = [step for step in analysis.sparsity.masked if step.indicator != "random"]
    less = with_masked(analysis, weakest)
    assert "random neurons was not measured" in captions(less, ["masking"])[0]
    assert len(axes_of("masking", less)) == 2


@pytest.mark.parametrize(
    ("name", "field"), [("neuron-scores", "neurons"), ("head-scores", "heads")]
)
def test_scores_stand_beside_their_null(analysis: Analysis, name: str, field: str) -> None:
    layers = getattr(analysis.functionality, field)
    panel = axes_of(name, analysis)[FUNCTIONS.index("Translation")]
    rows = [layer.functions["Translation"] for layer in layers]
    assert line(panel, "best") == [row.best.value for row in rows]
    assert line(panel, "mean") == [row.mean for row in rows]
    assert line(panel, "null: single") == [row.null.mean for row in rows]
    band = panel.collections[0].get_paths()[0].vertices[:, 1]
    assert {band.min(), band.max()} == {0.38, 0.41}  # the third functionality's: 0.34, 0.37 + 0.04
    intervals = panel.collections[1].get_segments()
    assert [list(part[:, 1]) for part in intervals] == [[r.best.low, r.best.high] for r in rows]
    if name == "neuron-scores":
        assert line(panel, "best 5 ‰") == [row.per_mille for row in rows]
        assert line(panel, "null: best 5 ‰") == [row.null.per_mille for row in rows]


def test_significant_neurons_are_shares_of_the_layer(analysis: Analysis) -> None:
    upper, lower, *_ = axes_of("significant-neurons", analysis)
    layers = analysis.functionality.neurons
    for row, name in enumerate(FUNCTIONS):
        facts = [(layer.functions[name], layer.units) for layer in layers]
        above = [100 * found.above_null / units for found, units in facts]
        assert heat(upper)[row] == pytest.approx(above)
        assert heat(lower)[row] == pytest.approx([found.split_half for found, _ in facts])


def test_the_perturbation_matrix_is_the_ablations(analysis: Analysis) -> None:
    axes, ablation = axes_of("perturbation", analysis)[0], analysis.perturbation.ablations[0]
    rows = ordered_rows(analysis, ablation)
    expected = [[100 * row.increase[name].value for name in FUNCTIONS] for row in rows]
    assert heat(axes) == pytest.approx(np.array(expected))
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[-3:] == ["random 1 (153)", "random 2 (153)", "resident (153)"]
    bold = [text.get_fontweight() == "bold" for text in axes.texts]
    sure = [rise.low > 0 or rise.high < 0 for row in rows for rise in row.increase.values()]
    assert bold == sure


def test_controls_stand_below_the_functionalities(analysis: Analysis) -> None:
    ablation = analysis.perturbation.ablations[0]
    mixed = ablation.model_copy(update={"rows": ablation.rows[::-1]})
    rows = [row.removed for row in ordered_rows(analysis, mixed)]
    assert rows == [*FUNCTIONS, "resident", "random 2", "random 1"]


def test_controls_are_told_by_their_kind_and_not_by_their_name() -> None:
    names = ("resident", "random 1")
    analysis = synthetic_analysis(1, names)
    ablation = analysis.perturbation.ablations[0]
    rows = ordered_rows(analysis, ablation.model_copy(update={"rows": ablation.rows[::-1]}))
    assert [row.kind for row in rows] == ["function"] * 2 + ["resident", "random", "random"]
    own = [row for row in rows if row.kind == "function"]
    assert [row.removed for row in own] == [*names]
    axes = ROWS["perturbation"].draw(analysis, ablation).axes[0]
    assert [patch.get_xy() for patch in axes.patches] == [(0, 0), (1, 1)]
    random = [r.increase[name].value for r in rows if r.kind == "random" for name in names]
    caption = ROWS["perturbation"].caption(analysis, ablation)
    assert f"to {change(max(random))}). Resident neurons" in caption


def test_a_number_that_is_not_there_is_grey_and_has_no_text(analysis: Analysis) -> None:
    ablation = analysis.perturbation.ablations[0]
    row = ablation.rows[0].model_copy(update={"increase": {"Math": analysis.overlap.pooled.null}})
    axes = ROWS["perturbation"].draw(analysis, ablation.model_copy(update={"rows": [row]})).axes[0]
    assert np.isnan(heat(axes)[0]).tolist() == [True, False, True, True]
    assert cell_texts(axes) == ["+2.0"]


def test_skipped_layers_are_columns(analysis: Analysis) -> None:
    rows = analysis.perturbation.ablations[-1].rows
    values = heat(axes_of("one-by-one", analysis)[0])
    expected = [[100 * row.increase[name].value for row in rows] for name in FUNCTIONS]
    assert values == pytest.approx(np.array(expected))


def test_layer_scores_are_the_layers_own(analysis: Analysis) -> None:
    layers = analysis.functionality.layers
    values = heat(axes_of("layer-scores", analysis)[0])
    found = [[layer.functions[name] for layer in layers] for name in FUNCTIONS]
    assert values == pytest.approx(np.array([[own.best.value for own in row] for row in found]))
    texts = axes_of("layer-scores", analysis)[0].texts
    above = [own.best.value > own.null.best_95 for row in found for own in row]
    assert [text.get_fontweight() == "bold" for text in texts] == above


def test_overlap_is_ordered_as_its_tree(analysis: Analysis) -> None:
    overlap = analysis.overlap.model_copy(
        update={"linkage": [[1.0, 3.0, 0.8, 2.0], [0.0, 2.0, 0.9, 2.0], [4.0, 5.0, 0.95, 4.0]]}
    )
    axes = axes_of("overlap", analysis.model_copy(update={"overlap": overlap}))[0]
    order = [1, 3, 0, 2]
    assert [label.get_text() for label in axes.get_yticklabels()] == [FUNCTIONS[n] for n in order]
    expected = 100 * np.array(overlap.pooled.values)[np.ix_(order, order)]
    np.fill_diagonal(expected, np.nan)
    np.testing.assert_allclose(heat(axes), expected)


@pytest.mark.parametrize("seed", range(5))
def test_the_tree_equals_scipys(seed: int) -> None:
    from scipy.cluster.hierarchy import dendrogram, linkage

    merges = linkage(np.random.default_rng(seed).random((7, 3)), "average")
    order, joints = tree(merges.tolist(), 7)
    expected = dendrogram(merges, no_plot=True)
    assert order == expected["leaves"]
    ours = sorted((height, *sorted((a.place, b.place))) for a, b, height in joints)
    theirs = [
        (high[1], *sorted(((place[0] - 5) / 10, (place[3] - 5) / 10)))
        for place, high in zip(expected["icoord"], expected["dcoord"], strict=True)
    ]
    assert np.array(ours) == pytest.approx(np.array(sorted(theirs)))


def test_overlap_of_a_layer_is_the_mean_of_its_pairs(analysis: Analysis) -> None:
    axes = axes_of("overlap-layers", analysis)[0]
    values = [np.array(matrix.values) for matrix in analysis.overlap.layers]
    pairs = [matrix[np.triu_indices(len(FUNCTIONS), 1)].mean() for matrix in values]
    assert line(axes, "mean of all pairs") == pytest.approx(pairs)
    bands = {
        band.get_label(): band.get_paths()[0].vertices[:, 1]
        for band in axes.collections
        if str(band.get_label()).startswith("null")
    }
    assert {v: (b.min(), b.max()) for v, b in bands.items()} == {
        "null: 95 % of single pairs": (0.005, 0.04),
        "null: 95 % of the mean": (0.018, 0.023),
    }


def test_sources_stand_at_their_scores(analysis: Analysis) -> None:
    axes = axes_of("sources", analysis)[0]
    points = {each.get_label(): each.get_offsets()[:, 0].tolist() for each in axes.collections[1:]}
    rows = sorted(
        analysis.functionality.sources, key=lambda row: (FUNCTIONS.index(row.function), row.source)
    )
    assert points["within the source"] == [row.within for row in rows]
    assert points["elsewhere (other sources)"] == [row.elsewhere for row in rows]
    assert points["chance within"] == [row.chance for row in rows]


def test_agreement_is_drawn_beside_chance(analysis: Analysis) -> None:
    left, right = axes_of("attribution", analysis)
    layers = analysis.functionality.attribution
    assert line(left, "Ethics") == [layer.correlation["Ethics"] for layer in layers]
    assert line(right, "Ethics") == [layer.overlap["Ethics"] for layer in layers]
    assert list(right.lines[-1].get_ydata()) == [0.05, 0.05]


def captions(analysis: Analysis, names: Sequence[str]) -> list[str]:
    rows = [ROWS[name] for name in names]
    return [row.caption(*next(iter(row.each(analysis)))) for row in rows]


def test_captions_name_the_null_beside_the_number(analysis: Analysis) -> None:
    sparsity, scores, matrix, overlap, layers = captions(
        analysis, ["sparsity", "neuron-scores", "perturbation", "overlap", "overlap-layers"]
    )
    assert "67\u00a0% of the normalised activations (range over 3 layers: 57\u00a0% to" in sparsity
    assert "evenly between zero and the largest" in sparsity
    assert "(null 0.34, 0.37)" in scores  # of the first functionality
    assert "(null 0.40, 0.43)" in scores  # of the last
    assert "Null: as many random neurons change it by" in matrix
    assert "the mean of all pairs is 2\u00a0% [1.8, 2.3] and a single pair shares" in overlap
    assert "a single pair shares 2\u00a0% [0.5, 4]" in overlap
    means = [np.array(m.values)[np.triu_indices(4, 1)].mean() for m in analysis.overlap.layers]
    above, below = sum(mean > 0.023 for mean in means), sum(mean < 0.018 for mean in means)
    assert f"in {above} and below it in {below} of 3 layers" in layers


def test_a_caption_says_where_a_control_is_missing(analysis: Analysis) -> None:
    ablation = analysis.perturbation.ablations[0]
    bare = ablation.model_copy(update={"rows": ablation.rows[: len(FUNCTIONS)]})
    caption = ROWS["perturbation"].caption(analysis, bare)
    assert "No random neurons were taken away here" in caption


def test_the_room_loads_no_torch(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import sys, brickwork.report.html, brickwork.report.read; print('torch' in sys.modules)"
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert run.stdout == "False\n"
