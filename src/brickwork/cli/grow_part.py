"""``brickwork grow width``, ``heads`` and so on: one growth of a model, by a row of GROWTHS."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from brickwork.cli.grow_options import PartCommand, row_options
from brickwork.cli.grow_write import grow_and_tell, writing_options

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
_PARTITION = "partition"


def lines_of(file: Path) -> list[str]:
    """The lines of a file that are not empty.

    Raises:
        DataError: if it cannot be read as text.
    """
    from brickwork.errors import DataError

    try:
        return [line for line in file.read_text("utf-8").splitlines() if line]
    except (OSError, ValueError) as error:
        raise DataError(f"the tokens in {file.name!r} cannot be read: {error}") from None


def _grow(part: str, model: str, by: str, options: dict[str, Any]) -> None:
    if by == _PARTITION:
        _grow_by_partition(model, options)
        return
    if options.pop("partition", None) is not None:
        _refuse_partition(by)
    from brickwork.grow.recipe import GrowthRecipe, RecipeStep

    besides = ("--tokens-from",) if part == "vocab" else ()
    told = row_options(part, by, options, besides=besides)
    step = RecipeStep(part=part, by=by, options=told)
    grow_and_tell(model, GrowthRecipe(steps=(step,), seed=options["seed"]), options)


def _grow_by_partition(model: str, options: dict[str, Any]) -> None:
    from brickwork.cli.grow_partition import grow_by_partition

    top_k = options.pop("row_top_k")
    row_options("experts", _PARTITION, options, besides=("--partition", "--top-k"))
    grow_by_partition(model, options | {"top_k": top_k})


def _refuse_partition(by: str) -> None:
    from brickwork.errors import ConfigurationError

    raise ConfigurationError(
        f"--partition has no effect on experts by {by}, which copies whole FFNs; leave it out, or "
        f"choose --by {_PARTITION}."
    )


def _command(part: str, about: str, *more: Callable[[Any], Any]) -> PartCommand:
    """The command of a part; ``more`` are options that no row has."""

    def run(model: str, by: str, **options: Any) -> None:
        if listed := options.pop("tokens_from", None):
            options["row_tokens"] = (*lines_of(listed), *options["row_tokens"])
        _grow(part, model, by, options)

    seed = click.option("--seed", type=int, default=0, help="Of all that is drawn at random.")
    decorated: Callable[..., None] = run
    for decorate in (writing_options, seed, *more, click.argument("model")):
        decorated = decorate(decorated)
    command = click.command(part, cls=PartCommand, help=about)(decorated)
    command.part = part
    return command


_MODEL = "MODEL is a folder, a Hub id, or `reference`."
width = _command(
    "width",
    f"""More neurons in every FFN of MODEL.

    {_MODEL} With `split` and `zero` it says what it said before.

    \b
    Examples:
      brickwork grow width reference --times 1.5 -o wider --dry-run
      brickwork grow width ./my-model --by zero --neurons 16384 -o wider
    """,
)
heads = _command(
    "heads",
    f"""More attention heads in every layer of MODEL.

    {_MODEL} Heads become more by whole groups (a key and value head with its queries), or by
    query heads in every group. Families whose heads' width follows from their number refuse.

    \b
    Examples:
      brickwork grow heads reference --kv-heads 4 -o more-heads
      brickwork grow heads ./my-model --by queries --heads 48 --start zero -o more-heads
    """,
)
hidden = _command(
    "hidden",
    f"""A larger hidden size: wider states between the layers of MODEL.

    {_MODEL} Zeros behind the states keep what it says under RMSNorm, whole copies of them under
    any norm; `duplicate-some` does not, and is told apart for that.

    \b
    Examples:
      brickwork grow hidden reference --size 320 -o wider
      brickwork grow hidden ./my-gpt2 --by duplicate --times 2 -o wider
    """,
)
depth = _command(
    "depth",
    f"""More layers for MODEL.

    {_MODEL} With `identity` and `blocks` new layers say nothing at first. `copy` and `stack` are
    popular, change what the model says, and have to be trained on.

    \b
    Examples:
      brickwork grow depth reference --by blocks --blocks 4 -o deeper
      brickwork grow depth reference --after 3 --after 7 -o deeper
      brickwork grow depth ./my-model --by stack --overlap 8 -o solar
    """,
)
vocab = _command(
    "vocab",
    f"""More tokens for MODEL, in its embeddings and its tokenizer.

    {_MODEL} The logits of old tokens stay what they were.

    \b
    Examples:
      brickwork grow vocab reference --token brickwork --token gradient -o knows-more
      brickwork grow vocab ./my-model --by pieces --tokens-from words.txt -o knows-more
    """,
    click.option("--tokens-from", type=_FILE, help="File with new tokens, one in a line."),
)
experts = _command(
    "experts",
    f"""A mixture of experts from the dense MODEL, or more experts in a mixture.

    {_MODEL} By `upcycle` every expert is a copy of the FFN; by `copies` every expert of a mixture
    becomes several; by `partition` the experts are groups of the neurons that there are, so that
    the model does not grow but for its routers, and --top-k is all of them by default (see
    `brickwork moe`, which can train routers).

    \b
    Examples:
      brickwork grow experts reference --experts 4 --top-k 2 -o mixture
      brickwork grow experts reference --by partition --partition groups -o mixture
    """,
    click.option("--partition", type=_FOLDER, help="For partition: its folder."),
)
experts.others = (_PARTITION,)
context = _command(
    "context",
    f"""Longer texts for MODEL.

    {_MODEL} `extend` and `dynamic` keep what it says of texts as long as before; `linear` and
    `yarn` need training. How well it reads farther than it was trained is another question.

    \b
    Examples:
      brickwork grow context reference --by dynamic --tokens 4096 -o longer
      brickwork grow context ./my-model --by yarn --tokens 32768 -o longer
    """,
)
