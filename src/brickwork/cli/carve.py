"""``brickwork carve``: a smaller checkpoint with the part of a model that a functionality needs."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brickwork.cli.carve_inputs import make_asked, read_aim
from brickwork.cli.console import emit, progress
from brickwork.cli.inputs import data_name, open_model, read_labelled
from brickwork.cli.options import OUT, model_options, output_options

if TYPE_CHECKING:
    from brickwork.measure.aim import Aim
    from brickwork.measure.choice import Choice
    from brickwork.model.load import LoadedModel
    from brickwork.model.parts import CausalModel

_COUNT = click.IntRange(min=1)
_READ = click.Path(path_type=Path, exists=True)


@click.command()
@click.argument("model")
@click.option("--for", "function", help="The functionality to keep; a label of the data.")
@click.option("--like", type=_READ, help="Or examples of what to keep: JSONL, prompt and response.")
@click.option("--data", help="Labelled instances (default for `reference`: its probe set).")
@click.option("--revision", help="Branch, tag or commit of MODEL on the Hub.")
@click.option("--mapping", help="How to read a data set: infinity-instruct, or a YAML file.")
@click.option("--instances", type=_COUNT, help="Instances of each functionality (default: all).")
@click.option(
    "--density",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.5,
    help="Share of the units that is kept.",
)
@click.option(
    "--units",
    type=click.Choice(["neurons", "groups", "experts", "heads", "layers"]),
    default="neurons",
    help="What is kept or left out.",
)
@click.option("--partition", type=_READ, help="Folder of a partition, for --units groups.")
@click.option("--by", help="How need is told: attribution, fisher, magnitude, ... (default: best).")
@click.option("--analysis", type=_READ, help="Folder of an analysis, for --by functionality.")
@click.option(
    "--widths",
    type=click.Choice(["uniform", "global"]),
    default="uniform",
    help="The same share of every layer; or the best of the whole model, padded with zeros.",
)
@click.option("--compensate", is_flag=True, help="Let kept neurons stand in for the others.")
@click.option("--heal", type=click.Choice(["lora", "full"]), help="Train what is left.")
@click.option("--heal-steps", type=_COUNT, default=200, help="Batches to train on.")
@click.option("--heal-data", help="Instances to train on (default: those chosen on).")
@click.option("-o", "--out", type=OUT, help="Folder for the checkpoint; must not exist.")
@click.option("--brick", type=OUT, help="Folder for the same choice as a brick.")
@click.option("--report", type=OUT, help="Folder for a page with figures of what was kept.")
@click.option(
    "--evaluation",
    type=_COUNT,
    default=40,
    help="Instances of each functionality that losses are measured on, at most a fifth of it.",
)
@click.option("--longest", type=_COUNT, default=512, help="Tokens after which a text is cut.")
@click.option("--dry-run", is_flag=True, help="Say how small it will be; measure nothing.")
@model_options
@output_options
def carve(model: str, as_json: bool, **options: Any) -> None:
    """Keep the part of MODEL that a functionality needs, as a smaller checkpoint.

    MODEL is a folder, a Hub id, or `reference`. What is kept is chosen on some instances, and
    losses are told of others. OUT is a plain checkpoint that transformers loads. All layers of
    one have the same width: with --widths global the narrower ones are padded with zeros.

    \b
    Examples:
      brickwork carve reference --for coding -o coder
      brickwork carve reference --for math --density 0.25 --compensate --heal lora -o small
      brickwork carve ./my-model --like examples.jsonl --units heads -o out --brick brick
    """  # fmt: skip
    from brickwork.cli.carve_view import render, render_plan

    _require_use(options)
    _require_sense(options)
    if options["dry_run"]:
        document = _plan(model, options)
        emit(document, as_json, lambda console: render_plan(console, document))
        return
    document = _carve(model, options)
    emit(document, as_json, lambda console: render(console, document))


def _require_use(options: Mapping[str, Any]) -> None:
    """Refuse an option that would change nothing, so that nobody believes it did."""
    from brickwork.errors import ConfigurationError

    units, by = f"--units {options['units']}", f"--by {options['by'] or 'the best method'}"
    idle = (
        ("partition", options["units"] != "groups", units, "choose --units groups"),
        ("analysis", options["by"] != "functionality", by, "choose --by functionality"),
        ("compensate", options["units"] in ("heads", "layers"), units,
         "choose neurons or groups, or --heal what is left"),
        ("heal_data", not options["heal"], "no --heal", "choose --heal lora or full"),
    )  # fmt: skip
    for name, unused, asked, advice in idle:
        if options[name] and unused:
            raise ConfigurationError(
                f"--{name.replace('_', '-')} was given with {asked}, where it has no effect; "
                f"{advice}, or leave it out."
            )


def _require_sense(options: Mapping[str, Any]) -> None:
    """Refuse what contradicts itself before anything is loaded."""
    from brickwork.brick.durable import require_free
    from brickwork.errors import ConfigurationError, ModelError
    from brickwork.report.extra import require_report

    if options["dry_run"]:
        return
    if bool(options["function"]) == bool(options["like"]):
        both = "both were given" if options["like"] else "neither was given"
        raise ConfigurationError(
            f"what is to be kept is told by --for or by --like, and {both}; give one of them."
        )
    if options["out"] is None and options["brick"] is None:
        raise ConfigurationError(
            "there is nowhere to write to; name a folder for the checkpoint (-o), for a brick "
            "(--brick), or ask for a --dry-run."
        )
    changing = [f"--{name}" for name in ("compensate", "heal") if options[name]]
    if options["out"] is None and changing:
        raise ConfigurationError(
            f"{' and '.join(changing)} changes weights, and a brick only keeps or leaves out; name "
            "a folder for the checkpoint (-o), too."
        )
    if options["report"] is not None:
        if options["out"] is None:
            raise ConfigurationError(
                "a report tells sizes before and after, and no checkpoint is to be written; name "
                "a folder for it (-o), too."
            )
        require_report()
    if options["brick"] is not None and options["units"] == "experts":
        raise ConfigurationError(
            "experts were to be kept by a brick, but a router would still pick the others; carve "
            "a checkpoint (-o), or choose --units neurons."
        )
    places = [options[name] for name in ("out", "brick") if options[name] is not None]
    for folder in places:
        require_free(folder, "a model", ModelError)
    if len(places) > 1 and places[0].resolve().is_relative_to(places[1].resolve()):
        raise ConfigurationError(
            f"the checkpoint was to be written to {str(options['out'])!r}, and the brick to "
            f"{str(options['brick'])!r}, which is the same folder or around it; name another."
        )


def _plan(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """How small it will be: any units are as good as others to tell."""
    from brickwork.measure.choice import choose
    from brickwork.measure.need import measure_need
    from brickwork.model.carve import carved_outline

    loaded = open_model(model, options, outline=True)
    asked = make_asked(loaded, [], options)
    choice = choose(asked, measure_need(asked, "random"), "random", density=options["density"])
    smaller = carved_outline(loaded, choice.kept)
    return {
        "model": loaded.name,
        "units": choice.units,
        "widths": options["widths"],
        "density": options["density"],
        "layers": choice.summary(),
        "size": _sizes(loaded.model, smaller),
    }


def _carve(model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    from brickwork.measure.choice import choose
    from brickwork.measure.need import best_method, measure_need

    loaded = open_model(model, options)
    aim = read_aim(model, loaded, options)
    method = options["by"] or best_method(options["units"])
    with progress(f"what {aim.name} needs", len(aim.choosing)) as advance:
        asked = make_asked(loaded, aim.choosing, options, advance, aim.name)
        need = measure_need(asked, method)
    choice = choose(
        asked, need, method,
        density=options["density"], widths=options["widths"], plain=options["out"] is not None,
    )  # fmt: skip
    document = _measured(loaded, aim, choice, options)
    if options["out"] is not None:
        document |= _write_checkpoint(loaded, aim, choice, options, document)
    if options["brick"] is not None:
        parents = () if asked.partition is None else (asked.partition.hash,)
        _write_brick(loaded, aim, choice, parents, options, document)
        document["brick"] = str(options["brick"])
    if options["report"] is not None:
        from brickwork.cli.carve_report import write_report

        seed, folder = options["seed"], options["report"]
        files = write_report(loaded, choice, document, _data_name(options), seed, folder)
        document["report"] = str(folder / next(f for f in files if f.endswith(".html")))
    return document


def _measured(
    loaded: "LoadedModel", aim: "Aim", choice: "Choice", options: Mapping[str, Any]
) -> dict[str, Any]:
    """What was kept, and losses of the full model, of what is kept, and of random units."""
    import torch

    from brickwork.measure.trial import CONTROLS, try_choice

    generator = torch.Generator().manual_seed(options["seed"])
    with progress("measuring losses", 2 + CONTROLS) as advance:
        trial = try_choice(loaded, aim, choice, generator=generator, advance=advance)
    return {
        "model": loaded.name,
        "for": aim.name,
        "chosen_on": len(aim.choosing),
        "measured_on": {name: len(own) for name, own in aim.evaluation.items()},
        "units": choice.units,
        "method": choice.method,
        "widths": choice.widths,
        "density": choice.density,
        "layers": choice.summary(),
        "losses": trial.rows(),
    }


def _write_checkpoint(
    loaded: "LoadedModel",
    aim: "Aim",
    choice: "Choice",
    options: Mapping[str, Any],
    document: dict[str, Any],
) -> dict[str, Any]:
    """Carve, change and write; what that adds to the document."""
    from brickwork.build.compensate import compensate
    from brickwork.model.carve import carve_model
    from brickwork.model.export import write_checkpoint

    carved = carve_model(loaded, choice.kept)
    sizes = _sizes(loaded.model, carved)
    if choice.widths == "global" and choice.units != "layers":
        sizes["kept_parameters"] = choice.parameters(loaded.model)
    losses = document["losses"]
    if options["compensate"]:
        with progress("compensating", len(aim.choosing)) as advance:
            compensate(carved, loaded, choice.kept, aim.choosing, advance=advance)
        _add_losses(losses, "compensated", aim.losses(carved))
    if options["heal"]:
        _heal(loaded, aim, carved, options)
        _add_losses(losses, "healed", aim.losses(carved))
    record = {
        "operation": "carve",
        "base": loaded.base.fingerprint.model_dump(mode="json"),
        "arguments": _arguments(options),
        **document,
        "size": sizes,
    }
    write_checkpoint(carved, options["out"], tokenizer=loaded.tokenizer, record=record)
    return {"out": str(options["out"]), "size": sizes}


def _add_losses(losses: dict[str, Any], what: str, found: Mapping[str, float]) -> None:
    for name, value in found.items():
        losses[name][what] = value


def _heal(
    loaded: "LoadedModel", aim: "Aim", carved: "CausalModel", options: Mapping[str, Any]
) -> None:
    import torch

    from brickwork.build.heal import HealRecipe, heal

    sequences = aim.choosing
    if options["heal_data"]:
        sequences = aim.unmeasured(loaded, read_labelled(options["heal_data"], options))
    recipe = HealRecipe(method=options["heal"], steps=options["heal_steps"])
    generator = torch.Generator().manual_seed(options["seed"])
    with progress("healing", recipe.steps) as advance:
        heal(carved, sequences, recipe, generator=generator, report=lambda *_step: advance(1))


def _write_brick(
    loaded: "LoadedModel",
    aim: "Aim",
    choice: "Choice",
    parents: tuple[str, ...],
    options: Mapping[str, Any],
    document: Mapping[str, Any],
) -> None:
    from brickwork.brick.folder import write_brick
    from brickwork.brick.spec import Function, Lineage, Metric
    from brickwork.measure.choice import brick_name, mask_brick

    labels = () if options["like"] else (aim.name,)
    exemplars = tuple(instance.prompt[:300] for instance in aim.instances[:5])
    metrics = tuple(
        Metric(
            name="loss", before=own["before"], after=own["kept"], unit="nats per response token",
            data=f"{name}, held out" + (" (what it is for)" if name == aim.name else ""),
        )
        for name, own in document["losses"].items()
    )  # fmt: skip
    brick = mask_brick(
        loaded,
        choice,
        name=brick_name(loaded.name, aim.name, choice),
        function=Function(
            text=f"the {choice.units} that {aim.name} needs", labels=labels, exemplars=exemplars
        ),
        lineage=Lineage(
            method=f"carve, by {choice.method}", arguments=_arguments(options),
            data=_data_name(options), parents=parents,
        ),
        metrics=metrics,
    )  # fmt: skip
    write_brick(brick, options["brick"])


def _data_name(options: Mapping[str, Any]) -> str:
    return options["like"].name if options["like"] else data_name(options["data"] or "reference")


def _arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that decide the result, with names in the place of paths."""
    passed = {"out", "brick", "report", "dry_run", "device", "as_json"}
    told = {name: value for name, value in options.items() if name not in passed}
    return {name: value.name if isinstance(value, Path) else value for name, value in told.items()}


def _sizes(full: "CausalModel", smaller: "CausalModel") -> dict[str, Any]:
    from brickwork.model.cost import token_flops

    sizes = {}
    for name, model in (("before", full), ("after", smaller)):
        parameters = list(model.parameters())
        sizes[name] = {
            "parameters": sum(p.numel() for p in parameters),
            "bytes": sum(p.numel() * p.element_size() for p in parameters),
            "flops_per_token": token_flops(model),
        }
    return sizes
