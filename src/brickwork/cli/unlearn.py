"""``brickwork unlearn``: take a behaviour away from a model, by examples of it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brickwork.cli.console import emit, progress
from brickwork.cli.inputs import data_name, open_model, read_labelled
from brickwork.cli.options import OUT, model_options, output_options, written_flags

if TYPE_CHECKING:
    from rich.console import Console

    from brickwork.brick.brick import Brick
    from brickwork.measure.aim import Aim
    from brickwork.measure.instances import Instance
    from brickwork.model.load import LoadedModel
    from brickwork.update.unlearn import Unlearned

_COUNT = click.IntRange(min=1)


@click.command()
@click.argument("model")
@click.option(
    "--examples", type=click.Path(path_type=Path, exists=True),
    help="Examples of the behaviour: JSONL, prompt and response.",
)  # fmt: skip
@click.option("--function", help="Or a functionality of the data.")
@click.option("--data", help="What is to stay: labelled instances (for `reference`: its own).")
@click.option("--mapping", help="How to read a data set: infinity-instruct, or a YAML file.")
@click.option("--instances", type=_COUNT, help="Instances of each functionality (default: all).")
@click.option(
    "--by", type=click.Choice(["negation", "suppression"]), default="negation",
    help="A LoRA of the behaviour with its sign turned; or neurons made silent.",
)  # fmt: skip
@click.option(
    "--bound", type=click.FloatRange(min=0, min_open=True), default=0.02,
    help="By what share the perplexity of anything else may rise.",
)  # fmt: skip
@click.option("--rank", type=_COUNT, default=8, help="For negation: of the LoRA.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=2e-3,
              help="For negation: learning rate of the LoRA.")  # fmt: skip
@click.option("--epochs", type=_COUNT, default=5, help="For negation: passes over the examples.")
@click.option(
    "--evaluation", type=_COUNT, default=40,
    help="Instances of each functionality that losses are measured on, at most a fifth of it.",
)  # fmt: skip
@click.option("--longest", type=_COUNT, default=512, help="Tokens after which a text is cut.")
@click.option("--revision", help="Branch, tag or commit of MODEL on the Hub.")
@click.option("-o", "--out", type=OUT, required=True, help="Folder for the brick.")
@model_options
@output_options
def unlearn(model: str, as_json: bool, **options: Any) -> None:
    """Make a brick that takes a behaviour away from MODEL, as far as the rest allows.

    MODEL is a folder, a Hub id, or `reference`. The strongest brick is taken under which the
    perplexity of no other functionality rises by more than the bound; the effect on all of them
    is measured on instances that nothing was chosen by.

    \b
    Examples:
      brickwork unlearn reference --function ethics --by suppression -o without-ethics
      brickwork unlearn ./my-model --examples rude.jsonl --data mine.jsonl -o polite
    """  # fmt: skip
    from brickwork.brick.durable import require_free
    from brickwork.brick.folder import write_brick
    from brickwork.errors import BrickFormatError, ConfigurationError

    require_free(options["out"], "a brick", BrickFormatError)
    if options["by"] == "suppression" and (idle := written_flags(("rank", "rate", "epochs"))):
        raise ConfigurationError(
            f"{idle[0]} has no effect on --by suppression, which trains nothing; leave it out."
        )
    data = options["data"] or ("reference" if model == "reference" else None)
    if bool(options["examples"]) == bool(options["function"]) or data is None:
        raise ConfigurationError(
            "the behaviour is told by --examples or by --function, and what is to stay by --data; "
            "give one of the first two, and the third."
        )
    if options["by"] == "negation" and options["dtype"] == "auto":
        options["dtype"] = "float32"  # what a LoRA is trained in
    loaded, others = open_model(model, options), read_labelled(data, options)
    aim = _aim(loaded, others, options)
    found = _unlearned(loaded, aim, others, options)
    write_brick(found.brick, options["out"])
    document = _document(found, aim, options) | {"data": data_name(data)}
    emit(document, as_json, lambda console: _render(console, document))


def _aim(loaded: "LoadedModel", others: "list[Instance]", options: Mapping[str, Any]) -> "Aim":
    from brickwork.cli.carve_inputs import read_examples
    from brickwork.measure.aim import aim_at, aim_like

    how = {name: options[name] for name in ("evaluation", "seed", "longest")}
    if options["examples"]:
        return aim_like(loaded, read_examples(options["examples"]), others, **how)
    return aim_at(loaded, others, options["function"], **how)


def _unlearned(
    loaded: "LoadedModel", aim: "Aim", others: "list[Instance]", options: Mapping[str, Any]
) -> "Unlearned":
    from brickwork.runtime.configured import ConfiguredModel
    from brickwork.update.unlearn import STRENGTHS, unlearn

    strengths = STRENGTHS[options["by"]]
    if options["by"] == "negation":
        make = _negation(loaded, aim, options)
    else:
        make = _suppression(loaded, aim, others, options)
    return unlearn(
        loaded, aim, make, strengths, serving=ConfiguredModel(loaded).applied,
        bound=options["bound"], seed=options["seed"],
    )  # fmt: skip


def _negation(
    loaded: "LoadedModel", aim: "Aim", options: Mapping[str, Any]
) -> "Callable[[float], Brick]":
    from brickwork.brick.spec import Function
    from brickwork.build.task import About, LoraRecipe, build_task
    from brickwork.cli.brick_inputs import name_of
    from brickwork.update.unlearn import negated

    linear = (site for site in loaded.base.of_kind("linear") if site.layer is not None)
    recipe = LoraRecipe(
        options["rank"], 2 * options["rank"],
        tuple(dict.fromkeys(site.path.rpartition(".")[2] for site in linear)),
        rate=options["rate"], epochs=options["epochs"], seed=options["seed"],
    )  # fmt: skip
    about = About(aim.name.lower(), Function(text=aim.name), f"{len(aim.choosing)} examples")
    with progress("learning the behaviour") as advance:
        task = build_task(loaded, aim.choosing, recipe, about, lambda *_step: advance(1))
    name = name_of(options["out"]) or "unlearned"
    return lambda strength: negated(task, strength, name)


def _suppression(
    loaded: "LoadedModel", aim: "Aim", others: "list[Instance]", options: Mapping[str, Any]
) -> "Callable[[float], Brick]":
    from brickwork.cli.brick_inputs import name_of
    from brickwork.update.unlearn import selective_neurons, silencing

    rest = [i for i in others if i.functionality != aim.name]
    kept = {
        name: aim.unmeasured(
            loaded, [i for i in rest if i.functionality == name], options["longest"]
        )
        for name in sorted({i.functionality for i in rest})
    }
    order = selective_neurons(loaded, aim.choosing, kept)
    name = name_of(options["out"]) or "unlearned"

    def make(share: float) -> "Brick":
        return silencing(loaded, order[: max(1, round(share * len(order)))], aim.name, name)

    return make


def _document(found: "Unlearned", aim: "Aim", options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "out": str(options["out"]),
        "behaviour": aim.name,
        "by": options["by"],
        "bound": options["bound"],
        "strength": found.strength,
        "tried": [
            {"strength": r.strength, "behaviour": r.behaviour, "worst": max(r.others.values())}
            for r in found.rungs
        ],
        "perplexity": {
            name: interval.model_dump()
            for name, interval in {aim.name: found.behaviour, **found.others}.items()
        },
    }


def _render(console: "Console", document: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("functionality", "rise of its perplexity", "95 % interval")
    for name, own in document["perplexity"].items():
        row = f"{name} (unlearned)" if name == document["behaviour"] else name
        table.add_row(row, f"{own['value']:+.1%}", f"{own['low']:+.1%} to {own['high']:+.1%}")
    console.print(table)
    line = f"{document['by']} at strength {document['strength']:g}: {document['out']}"
    console.print(line, markup=False, soft_wrap=True)
