"""``brickwork grow experts --by partition``: groups of the neurons that there are, as experts."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from brickwork.cli.console import emit
from brickwork.cli.grow_write import require_place

if TYPE_CHECKING:
    from rich.console import Console

# What ``brickwork moe`` has besides, left at its defaults.
_REST: Mapping[str, Any] = dict.fromkeys(
    ("target", "router", "data", "tune_steps", "tune_experts", "mapping", "instances")
)


def grow_by_partition(model: str, options: dict[str, Any]) -> None:
    """Write the model as a mixture of its own groups, as ``brickwork moe`` does, and check it.

    Args:
        model: a folder, a Hub id, or ``reference``.
        options: those of the command, and ``top_k``.

    Raises:
        ConfigurationError: if there is no partition, or it does not fit.
        BrokenPromise: if all experts together say something else than the model.
    """
    from brickwork.cli.grow_check import require_kept
    from brickwork.cli.moe import mixture_document
    from brickwork.errors import ConfigurationError

    if options["partition"] is None:
        raise ConfigurationError(
            "experts by partition were asked for without the folder of a partition; make one with "
            "`brickwork partition`, and name it with --partition."
        )
    require_place(options)
    told = {**_REST, **options, "dtype": "auto"}
    document = mixture_document(model, options["partition"], options["out"], told)
    if not options["dry_run"]:
        document |= {"equivalence": _checked(model, document, options)}
    emit(document, options["as_json"], lambda console: _render(console, document, options))
    require_kept(document)


def _checked(
    model: str, document: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any] | None:
    from brickwork.cli.grow_check import differences, is_wanted, longest_of
    from brickwork.cli.inputs import open_model
    from brickwork.model.load import load_model

    outline = open_model(model, {**options, "dtype": "auto"}, outline=True).model
    numbers = document["parameters"] + document["dense_parameters"]
    if not is_wanted(numbers, options["check"]):
        return None
    exact = {**options, "dtype": "float32"}
    return differences(
        lambda: open_model(model, exact),
        lambda: load_model(str(options["out"]), device=options["device"], dtype="float32"),
        vocabulary=len(outline.get_output_embeddings().weight), longest=longest_of(outline),
        dtypes={outline.dtype}, promised=document["top_k"] == document["experts"],
    )  # fmt: skip


def _render(console: "Console", document: dict[str, Any], options: Mapping[str, Any]) -> None:
    from brickwork.cli.grow_view import equivalence_line
    from brickwork.cli.moe import render

    render(console, document, options["dry_run"])
    if found := document.get("equivalence"):
        console.print(equivalence_line(found), markup=False, soft_wrap=True)
