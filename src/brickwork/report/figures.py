"""The table of figures: what is drawn, what stands beside it, and how to read it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from brickwork.measure.results import Analysis
from brickwork.report import controls, overlap, perturbation, scores, sparsity


@dataclass(frozen=True)
class FigureRow:
    """One figure, or one for each ablation, and the words around it."""

    name: str
    """Start of the file's name."""
    title: str
    shows: str
    computed: str
    read: str
    null: str
    caption: Callable[..., str]
    """Takes what ``each`` gives; says the headline numbers with their null."""
    draw: Callable[..., Figure]
    """Takes what ``each`` gives."""
    each: Callable[[Analysis], Iterable[tuple[Any, ...]]]
    """The arguments of every figure of this row; nothing where it was not measured."""


def _where(present: Callable[[Analysis], object]) -> Callable[[Analysis], list[tuple[Any, ...]]]:
    return lambda analysis: [(analysis,)] if present(analysis) else []


def _matrices(analysis: Analysis) -> Iterator[tuple[Any, ...]]:
    for ablation in analysis.perturbation.ablations:
        if ablation.chosen != "each" and ablation.rows:
            yield analysis, ablation


def _one_by_one(analysis: Analysis) -> Iterator[tuple[Any, ...]]:
    for ablation in analysis.perturbation.ablations:
        if ablation.chosen == "each" and ablation.rows:
            yield analysis, ablation


FIGURES = (
    FigureRow(
        "sparsity",
        "How sparse activations are",
        "For each layer, the share of neurons (over all tokens) whose indicator is at or below a "
        "given part of the largest one.",
        "For every token and layer the indicator of each neuron (its activation's size, or its "
        "output magnitude) is divided by the largest indicator among the layer's neurons for that "
        "token; the curve is the cumulative distribution of these quotients.",
        "The further up and left a curve runs, the fewer neurons do most of the work for a token. "
        "The colour goes from the first layer (dark) to the last (light).",
        "The dotted diagonal is an even spread between zero and the largest. The quotient depends "
        "on a single largest neuron, so one huge neuron makes a layer look sparse; the next figure "
        "checks whether the weak neurons are really not needed.",
        sparsity.caption_distribution,
        sparsity.draw_distribution,
        _where(lambda analysis: analysis.sparsity.layers),
    ),
    FigureRow(
        "masking",
        "What masking the weak neurons costs",
        "How much the perplexity on the responses of each functionality rises when the weakest "
        "neurons are silenced, and when any neurons are.",
        "For every token and layer the given share of neurons with the smallest indicator is set "
        "to zero; the number is the increase of the perplexity relative to the whole model: 100 is "
        "twice as much.",
        "A curve that stays at 0 up to 70 % says that a token needs less than a third of the "
        "neurons. Bands are 95 % bootstrap intervals of the increase, with and without the mask on "
        "the same instances. Where increases are large, the axis is even up to 10 % and goes by "
        "powers of ten beyond, at most to a million percent.",
        "The line at 0 is the whole model. The control masks as many neurons of each token at "
        "random: only what the weakest cost less than these is owed to the choice.",
        sparsity.caption_masking,
        sparsity.draw_masking,
        _where(lambda analysis: analysis.sparsity.masked),
    ),
    FigureRow(
        "neuron-scores",
        "How well single neurons tell a functionality",
        "For each functionality and layer the score of the best neuron (with its interval), the "
        "score that the best 5 in 1,000 neurons reach, and the mean of all neurons.",
        "A neuron's activity on an instance is the mean size of its activation over the prompt's "
        "tokens. Its functionality score is the average precision of ranking all instances by this "
        "activity: 1 if every instance of the functionality comes before every other.",
        "Compare lines with the grey ones of the same kind: the best with the best, the mean with "
        "the mean. The best of many neurons is high by luck alone.",
        "The labels of the instances are shuffled many times and everything is computed again, for "
        "each functionality on its own: one with many instances scores higher by luck. The "
        "grey band runs from the mean to the 95 % bound of the best neuron, the dashed line is the "
        "best 5 in 1,000, the dotted one a single neuron. The paper compares with random "
        "activations, which corresponds to the dotted line only.",
        scores.caption_neuron_scores,
        scores.draw_neuron_scores,
        _where(lambda analysis: analysis.functionality.neurons),
    ),
    FigureRow(
        "head-scores",
        "How well single attention heads tell a functionality",
        "The same for attention heads: the best head and the mean of all heads of each layer.",
        "A head's activity is the norm of what it adds to the residual stream, averaged over the "
        "prompt's tokens; the score is the same average precision.",
        "As above. A layer has few heads, so the best by luck is lower than among neurons.",
        "Shuffled labels, as above. The paper looks at neurons only.",
        scores.caption_head_scores,
        scores.draw_head_scores,
        _where(lambda analysis: analysis.functionality.heads),
    ),
    FigureRow(
        "significant-neurons",
        "How many neurons are beyond luck, and how stable they are",
        "Above: the share of each layer's neurons whose score is beyond what the best neuron "
        "reaches by luck. Below: whether two halves of the instances agree on the scores.",
        "A neuron counts if its score exceeds the 95 % bound of the layer's best for this "
        "functionality under shuffled labels. For the lower map every neuron is scored on two "
        "disjoint halves of the instances; the number is Spearman's rank correlation over the "
        "neurons.",
        "Dark cells above: many neurons know the functionality. Dark cells below: the same neurons "
        "are found again on other instances. Grey: not measured.",
        "The bound of the best is strict: by luck 95 of 100 layers have no neuron above it, "
        "but with many layers and functionalities a few such cells are to be expected. Unrelated "
        "halves would correlate at 0.",
        scores.caption_significant,
        scores.draw_significant,
        _where(lambda analysis: analysis.functionality.neurons),
    ),
    FigureRow(
        "sources",
        "Functionality or only the source of the data?",
        "Whether neurons found on other sources still tell functionalities apart inside a source "
        "that they were not chosen on.",
        "For one source and functionality, the best 5 in 1,000 neurons of each layer are chosen on "
        "the instances of all other sources and scored on this source's instances alone; the "
        "number is the mean of their scores.",
        "A filled dot far right of its black tick: the neurons know the functionality, not the "
        "template or the style of a source. A filled dot at its tick: they knew the source.",
        "Ticks are the scores of a neuron that knows nothing: black inside the source, grey where "
        "the neurons were chosen. They differ as the shares of the functionality differ.",
        controls.caption_sources,
        controls.draw_sources,
        _where(lambda analysis: analysis.functionality.sources),
    ),
    FigureRow(
        "attribution",
        "Does another way to score find the same neurons?",
        "How far scores by activation agree with scores by attribution, layer by layer.",
        "Attribution is the size of the loss's gradient times the activation: how much a neuron "
        "mattered for the answer, not only how loud it was. Left: Spearman's correlation of all "
        "neurons' scores. Right: the shared part of the two sets of functional neurons.",
        "High lines: the loud neurons are those that matter. Low lines: loudness and use differ, "
        "so conclusions from activations alone are weak.",
        "The dotted lines are what unrelated scores would give.",
        controls.caption_attribution,
        controls.draw_attribution,
        _where(lambda analysis: analysis.functionality.attribution),
    ),
    FigureRow(
        "perturbation",
        "What taking units away does",
        "Each row takes away the functional units of one functionality, or those of a control; "
        "each column is the functionality that the perplexity is measured on.",
        "Perplexity on the responses of evaluation instances, of which none was used to choose the "
        "units; the number is the increase relative to the whole model: +100 is twice as much.",
        "Specialised units show as a dark framed diagonal with pale cells beside it. Bold: the 95 "
        "% interval excludes 0. In brackets: how many units were taken away. Colours end at 1000 "
        "%; between -5 % and 5 % they are even, beyond that by powers of ten.",
        "Below the line stand the controls: as many random units of the same layers, and resident "
        "units, which fire for everything. A functionality whose row looks like the resident one "
        "has no units of its own; the damage is general.",
        perturbation.caption_matrix,
        perturbation.draw_matrix,
        _matrices,
    ),
    FigureRow(
        "one-by-one",
        "What taking away one part at a time does",
        "The perplexity of each functionality with one part of the model skipped at a time.",
        "The part is bypassed, as if it added nothing to the residual stream; the number is the "
        "relative increase of the response perplexity.",
        "A column that is dark from top to bottom matters for everything; a single dark cell in "
        "it matters for one functionality. Bold: the 95 % interval excludes 0.",
        "There is no random control: all parts are shown, and each is compared with the others.",
        perturbation.caption_each,
        perturbation.draw_each,
        _one_by_one,
    ),
    FigureRow(
        "layer-scores",
        "How well whole layers tell a functionality",
        "The functionality score of each layer taken as one unit.",
        "The layer's activity is how much its block changes the residual stream, averaged over "
        "the prompt's tokens; the score is the average precision as for neurons.",
        "Dark: the layer works harder for this functionality than for others. Bold: beyond 95 % "
        "of the shuffles.",
        "Shuffled labels, for each functionality on its own. A layer is a single unit, so its best "
        "is itself.",
        scores.caption_layer_scores,
        scores.draw_layer_scores,
        _where(lambda analysis: analysis.functionality.layers),
    ),
    FigureRow(
        "overlap",
        "Do functionalities have neurons of their own?",
        "The shared part of the functional neurons of every two functionalities, and a tree that "
        "joins those that share most.",
        "The number of neurons in both sets divided by the size of one, over all layers together. "
        "The tree is average-linkage clustering by one minus this number.",
        "Small numbers: separate neurons. Bold: outside the 95 % range of single pairs under the "
        "null. The line in the colour bar is the null's mean. In the tree, joints further left "
        "join more alike sets.",
        "The null shuffles the labels. As each instance has only one label, a neuron that is "
        "high for one functionality is low for the others, so shuffled labels share less than "
        "two independent sets would: independence is the wrong reference, and is only named.",
        overlap.caption_overlap,
        overlap.draw_overlap,
        _where(lambda analysis: len(analysis.overlap.functions) > 1),
    ),
    FigureRow(
        "overlap-layers",
        "Overlap in each layer",
        "The mean overlap of all pairs of functionalities, layer by layer.",
        "As above, within one layer; the pale bars run from the pair that shares least to the one "
        "that shares most.",
        "A blue line inside the dark band: the layer's functionalities share what shuffled labels "
        "would. Above: they share neurons. Below: they avoid each other's.",
        "Shuffled labels. The dark band is the 95 % range of the mean of all pairs, for the line; "
        "the pale one that of single pairs, which vary more, for the bars.",
        overlap.caption_overlap_layers,
        overlap.draw_overlap_layers,
        _where(lambda analysis: analysis.overlap.layers and len(analysis.overlap.functions) > 1),
    ),
)
"""In the order of the report."""
