"""``brickwork combine``: several models, or several bricks, become one as a recipe says."""

import pkgutil
import re
from pathlib import Path
from typing import Any

import click

from brickwork.cli.combine_evaluate import evaluation_options, require_sense
from brickwork.cli.options import OUT, offline_option, output_options

# What a recipe is, by a key that only its kind has; each is carried out by its own module.
KINDS = {
    "bricks": "brickwork.cli.combine_bricks:combine_bricks",
    "experts": "brickwork.cli.combine_mixture:combine_mixture",
}
_MODELS = "brickwork.cli.combine_models:combine_models"
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


class SizeType(click.ParamType[int]):
    """A number of bytes: ``5GB``, ``200MB``, ``1000``."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        """The number of bytes; units are powers of a thousand, as transformers counts."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(
            r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]?)B?", str(value).strip(), re.IGNORECASE
        )
        size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
        if size < 1:
            self.fail(f"{value!r} is no size; write for example 5GB or 200MB.", param, ctx)
        return size


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("-o", "--out", type=OUT, required=True, help="Folder for the result; new.")
@click.option("--dry-run", is_flag=True, help="Say what would be done; write nothing.")
@click.option("--seed", type=click.IntRange(min=0), help="Instead of the recipe's seed.")
@click.option(
    "--shard-size", type=SizeType(), default="5GB", help="Bytes of weights in a file, at most."
)
@click.option(
    "--workers", type=click.IntRange(min=1),
    help="Tensors at work at once (default: one for each core, if memory allows).",
)  # fmt: skip
@evaluation_options
@offline_option
@output_options
def combine(recipe: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Merge what the YAML file RECIPE names, and write it as one.

    A recipe names models (mergekit's recipes run as they are), or, under `bricks:`, bricks, or,
    under `experts:`, dense models that become one mixture. A model is a folder, a Hub id with an
    optional @revision, or `reference`; `+adapter` after it adds a LoRA. A run that was stopped goes
    on when the same command is given again.

    \b
    Examples:
      brickwork combine soup.yaml -o soup --dry-run
      brickwork combine soup.yaml -o soup
      brickwork combine soup.yaml -o soup --evaluate reference --report soup-report
    """
    from brickwork.combine.document import read_document

    if options["data"] is not None or options["report"] is not None:
        require_sense(options)
    document = read_document(recipe)
    target = next((target for key, target in KINDS.items() if key in document), _MODELS)
    pkgutil.resolve_name(target)(document, recipe, out, as_json, options)
