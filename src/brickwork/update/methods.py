"""METHODS: every way to edit a model.

A row names the function that turns facts into the tensors of a brick. An outside package adds
rows through the entry-point group ``brickwork.edit_methods``.
"""

from collections.abc import Mapping
from functools import cache

from brickwork.brick.tables import collect_rows, find_row
from brickwork.errors import EditError
from brickwork.update.method import EditMethod

_ROWS = (
    EditMethod(
        "rome", "rank-one update that writes one value at one key",
        "brickwork.update.rome:draft_rome", "brickwork.update.rome:RomeOptions",
        "lora", "one", 1, ("covariance",),
        "Meng et al. 2022, arXiv:2202.05262; the consistent variant: Gupta et al. 2024, "
        "arXiv:2403.07175",
    ),
    EditMethod(
        "memit", "many values at many keys, spread over several layers",
        "brickwork.update.memit:draft_memit", "brickwork.update.memit:MemitOptions",
        "lora", "many", 3, ("covariance",),
        "Meng et al. 2022, arXiv:2210.07229",
    ),
    EditMethod(
        "alphaedit", "as memit, but only where the corpus reads nothing",
        "brickwork.update.alphaedit:draft_alphaedit",
        "brickwork.update.alphaedit:AlphaEditOptions",
        "lora", "many", 3, ("covariance",),
        "Fang et al. 2024, arXiv:2410.02355",
    ),
    EditMethod(
        "ft", "gradient descent on one layer, with a bound on the norm",
        "brickwork.update.finetune:draft_finetune", "brickwork.update.finetune:FinetuneOptions",
        "lora", "many", 1, (),
        "Zhu et al. 2020, arXiv:2012.00363",
    ),
    EditMethod(
        "knowledge-neurons", "neurons that hold a fact made silent, or louder",
        "brickwork.update.suppress:draft_suppression",
        "brickwork.update.suppress:SuppressionOptions",
        "ia3", "one", 0, (),
        "Dai et al. 2022, arXiv:2104.08696",
    ),
    EditMethod(
        "grace", "a codebook that replaces states near the fact's",
        "brickwork.update.grace:draft_grace", "brickwork.update.grace:GraceOptions",
        "codebook", "many", 1, (),
        "Hartvigsen et al. 2023, arXiv:2211.11031", depth=0.5,
    ),
    EditMethod(
        "t-patcher", "an added neuron for every token that the model gets wrong",
        "brickwork.update.patcher:draft_patches", "brickwork.update.patcher:PatcherOptions",
        "patch", "many", 1, ("corpus",),
        "Huang et al. 2023, arXiv:2301.09785", depth=1.0,
    ),
    EditMethod(
        "serac", "a memory of facts behind a learned scope",
        "brickwork.update.serac:draft_serac", "brickwork.update.serac:SeracOptions",
        "memory", "many", 1, ("corpus",),
        "Mitchell et al. 2022, arXiv:2206.06520", depth=0.5,
    ),
)  # fmt: skip


@cache
def edit_methods() -> Mapping[str, EditMethod]:
    """All rows by name, those of installed packages included."""
    return collect_rows(_ROWS, "brickwork.edit_methods", "edit method", EditError)


def find_edit_method(name: str) -> EditMethod:
    """The row of that name, or an error that lists the nearest names."""
    return find_row(edit_methods(), "edit method", name)
