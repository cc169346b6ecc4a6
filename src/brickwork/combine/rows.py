"""ROWS: the merge methods that come with Brickwork.

Names, parameters, scopes and defaults are those of mergekit 0.1.5 for the methods that it has, so
that its recipes run as they are; ``fisher`` and ``regmean`` are ours.
"""

from brickwork.combine.method import Method, Parameter

_HOME = "brickwork.combine"
_WEIGHT = Parameter("weight", "operand", "number", None, "factor of this model; any sign")
_SHARE = Parameter("weight", "operand", "number", 1.0, "factor of this model, at least 0")
_INT8_MASK = Parameter("int8_mask", "shared", "switch", False, "changes nothing", ignored=True)
_GAMMA = Parameter(
    "gamma", "operand", "number", 0.01, "share of the largest changes left out, 0 to 1"
)
_EPSILON = Parameter(
    "epsilon", "operand", "number", 0.15, "how far the rate of keeping goes from density; a share"
)
_LEAST_CHANGE = Parameter(
    "epsilon", "shared", "number", 1e-5, "the change above which a model has touched a value"
)


def _normalize(default: bool) -> Parameter:
    return Parameter("normalize", "shared", "switch", default, "divide by the sum of the weights")


def _task_vectors(*, normalize: bool, rescale: bool) -> tuple[Parameter, ...]:
    return (
        _WEIGHT,
        Parameter("density", "operand", "number", 1.0, "share of the changes kept, 0 to 1"),
        _normalize(normalize),
        Parameter("rescale", "shared", "switch", rescale, "keep the sum of the changes' sizes"),
        Parameter("lambda", "shared", "number", 1.0, "factor of all changes together"),
        _INT8_MASK,
    )


_DENSE = (  # task arithmetic drops nothing
    _WEIGHT,
    Parameter("density", "operand", "number", 1.0, "changes nothing", ignored=True),
    _normalize(False),
    Parameter("rescale", "shared", "switch", False, "changes nothing", ignored=True),
    Parameter("lambda", "shared", "number", 1.0, "factor of all changes together"),
    _INT8_MASK,
)
_PLAIN = _task_vectors(normalize=False, rescale=False)
_RESCALED = _task_vectors(normalize=False, rescale=True)

AVERAGES = (
    Method(
        "linear", "weighted average (model soup)", f"{_HOME}.linear:linear",
        "operand", 1, None, (_WEIGHT, _normalize(True)),
        "Wortsman et al. 2022, arXiv:2203.05482",
    ),
    Method(
        "slerp", "along the arc from the base to one other model", f"{_HOME}.slerp:slerp",
        "required", 1, 1,
        (Parameter("t", "shared", "number", None, "place on the arc; 0: the base, 1: the other"),),
        "Shoemake 1985, Animating rotation with quaternion curves", alone="copy",
    ),
    Method(
        "nuslerp", "along the arc between two models, or between their changes",
        f"{_HOME}.nuslerp:nuslerp", "optional", 2, 2,
        (
            _WEIGHT,
            Parameter("nuslerp_flatten", "shared", "switch", True, "one arc for the whole tensor"),
            Parameter(
                "nuslerp_row_wise", "shared", "switch", False,
                "without flatten: an arc for each column instead of each row",
            ),
        ),
        "mergekit 0.1.5; Shoemake 1985", alone="copy",
    ),
    Method(
        "multislerp", "mean direction times mean length", f"{_HOME}.multislerp:multislerp",
        "optional", 1, None,
        (
            _WEIGHT,
            Parameter(
                "normalize_weights", "shared", "switch", True, "divide by the sum of the weights"
            ),
            Parameter("eps", "shared", "number", 1e-8, "added to lengths; the least that divides"),
        ),
        "Goddard 2025, goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    ),
    Method(
        "karcher", "the direction nearest to all, by arc length", f"{_HOME}.karcher:karcher",
        "operand", 1, None,
        (
            Parameter("max_iter", "shared", "count", 10, "most steps"),
            Parameter("tol", "shared", "number", 1e-5, "the step, in radians, that ends it"),
        ),
        "Karcher 1977; arXiv:2603.04972",
    ),
    Method(
        "model_stock", "the average, drawn to the base as far as the models disagree",
        f"{_HOME}.model_stock:model_stock", "required", 2, None,
        (Parameter("filter_wise", "shared", "switch", False, "judge each row by itself"),),
        "Jang et al. 2024, arXiv:2403.19522", alone="copy_base_or_skip",
    ),
    Method(
        "nearswap", "the other model where it is near to the base", f"{_HOME}.nearswap:nearswap",
        "required", 1, 1,
        (Parameter("t", "shared", "number", None, "the distance up to which the other is taken"),),
        "alchemonaut 2024, QuartetAnemoi-70B-t0.0001", alone="copy_base",
    ),
    Method(
        "arcee_fusion", "the other model's most important changes",
        f"{_HOME}.arcee_fusion:arcee_fusion", "required", 1, 1, (),
        "Arcee AI 2024, mergekit", alone="copy",
    ),
    Method(
        "passthrough", "one model's tensor, times a factor", f"{_HOME}.passthrough:passthrough",
        "operand", 1, 1,
        (Parameter("scale", "operand", "number", 1.0, "factor; any sign"),),
        "mergekit 0.1.5",
    ),
    Method(
        "fisher", "average weighted by how much each value matters to its model",
        f"{_HOME}.fisher:fisher", "operand", 1, None, (_SHARE,),
        "Matena and Raffel 2021, arXiv:2111.09832", statistics="fisher",
    ),
    Method(
        "regmean", "the linear map nearest to all models' outputs on their own inputs",
        f"{_HOME}.regmean:regmean", "operand", 1, None,
        (
            _SHARE,
            Parameter("alpha", "shared", "number", 0.9, "factor of the off-diagonal, 0 to 1"),
        ),
        "Jin et al. 2022, arXiv:2212.09849", statistics="gram",
    ),
)  # fmt: skip

TASK_VECTORS = (
    Method(
        "task_arithmetic", "the base plus weighted changes",
        f"{_HOME}.task_arithmetic:task_arithmetic", "required", 0, None, _DENSE,
        "Ilharco et al. 2022, arXiv:2212.04089",
    ),
    Method(
        "ties", "largest changes only, those of the elected sign",
        f"{_HOME}.task_arithmetic:ties", "required", 0, None,
        _task_vectors(normalize=True, rescale=False),
        "Yadav et al. 2023, arXiv:2306.01708",
    ),
    Method(
        "dare_linear", "random changes, rescaled", f"{_HOME}.task_arithmetic:dare_linear",
        "required", 0, None, _RESCALED,
        "Yu et al. 2023, arXiv:2311.03099", random=True,
    ),
    Method(
        "dare_ties", "random changes, rescaled, those of the elected sign",
        f"{_HOME}.task_arithmetic:dare_ties", "required", 0, None, _RESCALED,
        "Yu et al. 2023, arXiv:2311.03099", random=True,
    ),
    Method(
        "breadcrumbs", "neither the largest nor the smallest changes",
        f"{_HOME}.task_arithmetic:breadcrumbs", "required", 0, None, (*_PLAIN, _GAMMA),
        "Davari and Belilovsky 2023, arXiv:2312.06795",
    ),
    Method(
        "breadcrumbs_ties", "neither the largest nor the smallest, those of the elected sign",
        f"{_HOME}.task_arithmetic:breadcrumbs_ties", "required", 0, None, (*_PLAIN, _GAMMA),
        "Davari and Belilovsky 2023, arXiv:2312.06795",
    ),
    Method(
        "della", "random changes, large ones rather, those of the elected sign",
        f"{_HOME}.task_arithmetic:della", "required", 0, None,
        (*_task_vectors(normalize=True, rescale=True), _EPSILON),
        "Deep et al. 2024, arXiv:2406.11617", random=True,
    ),
    Method(
        "della_linear", "random changes, large ones rather",
        f"{_HOME}.task_arithmetic:della_linear", "required", 0, None, (*_RESCALED, _EPSILON),
        "Deep et al. 2024, arXiv:2406.11617", random=True,
    ),
    Method(
        "sce", "changes where the models differ most, weighted by their energy",
        f"{_HOME}.sce:sce", "required", 0, None,
        (
            Parameter("select_topk", "shared", "number", 1.0, "share of the values kept, 0 to 1"),
            _INT8_MASK,
        ),
        "Wan et al. 2024, arXiv:2408.07990",
    ),
    Method(
        "ram", "each value averaged over the models that changed it", f"{_HOME}.ram:ram",
        "required", 0, None, (_LEAST_CHANGE,),
        "arXiv:2601.13572",
    ),
    Method(
        "ramplus_tl", "as ram, and changes of one model alone are made larger",
        f"{_HOME}.ram:ramplus_tl", "required", 0, None,
        (
            Parameter("r", "shared", "number", 0.1, "how much larger, at least 0"),
            Parameter("alpha", "shared", "number", 0.2, "most overlap that counts, at least 0"),
            _LEAST_CHANGE,
        ),
        "arXiv:2601.13572",
    ),
)  # fmt: skip

ROWS = (*AVERAGES, *TASK_VECTORS)
