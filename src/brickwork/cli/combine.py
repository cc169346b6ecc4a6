"""``brickwork combine``: several models, or several bricks, become one as a recipe says."""

import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from brickwork.cli.combine_evaluate import evaluation_options, require_sense
from brickwork.cli.options import OUT, offline_option, output_options, written_flags
from brickwork.errors import ConfigurationError


@dataclass(frozen=True)
class Kind:
    """What a recipe may be of: how it is called, what carries it out, and idle options."""

    name: str
    target: str
    idle: tuple[str, ...]


# By a key that only recipes of this kind have.
KINDS = {
    "bricks": Kind(
        "bricks", "brickwork.cli.combine_bricks:combine_bricks", ("shard_size", "workers")
    ),
    "experts": Kind("experts", "brickwork.cli.combine_mixture:combine_mixture", ("model",)),
}
_MODELS = Kind("models", "brickwork.cli.combine_models:combine_models", ("model",))
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
@click.option(
    "--store", type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Store with the bricks that are named (default: the built-in one).",
)  # fmt: skip
@click.option("--model", help="Base of the bricks, for PEFT adapters and for --evaluate.")
@evaluation_options
@offline_option
@output_options
def combine(recipe: Path, out: Path, as_json: bool, **options: Any) -> None:
    """Merge what the YAML file RECIPE names, and write it as one.

    A recipe names models (mergekit's recipes run as they are), or, under `bricks:`, bricks, or,
    under `experts:`, dense models that become one mixture. A model is a folder, a Hub id with an
    optional @revision, or `reference`; `+adapter` after it adds a LoRA. A merge of models that was
    stopped goes on when the same command is given again.

    \b
    Examples:
      brickwork combine soup.yaml -o soup --dry-run
      brickwork combine soup.yaml -o soup
      brickwork combine soup.yaml -o soup --evaluate reference --report soup-report
      brickwork combine bricks.yaml -o both --store ./store --model ./base
    """
    from brickwork.combine.document import read_document

    require_sense(options)
    document = read_document(recipe)
    kind = _kind(document, recipe)
    if idle := written_flags(kind.idle):
        raise ConfigurationError(
            f"{recipe} is a recipe for {kind.name}, on which {', '.join(idle)} would have no "
            "effect; leave it out."
        )
    pkgutil.resolve_name(kind.target)(document, recipe, out, as_json, options)


def _kind(document: Mapping[str, Any], recipe: Path) -> Kind:
    keys = [key for key in (*KINDS, "models", "slices", "modules") if key in document]
    if len(keys) > 1 and keys[0] in KINDS:
        raise ConfigurationError(
            f"{recipe} has the keys {' and '.join(map(repr, keys))}, which belong to different "
            "kinds of recipes; keep one, and write another recipe for the rest."
        )
    return KINDS[keys[0]] if keys and keys[0] in KINDS else _MODELS
