"""``brickwork grow train``: train a grown model on, all of it or only what is new."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brickwork.cli.console import emit, progress
from brickwork.cli.inputs import data_name, open_model, read_labelled
from brickwork.cli.options import OUT, model_options, output_options, written_flags

if TYPE_CHECKING:
    from rich.console import Console

    from brickwork.cli.grow_data import Parted
    from brickwork.grow.curve import Curve
    from brickwork.grow.fresh import Fresh
    from brickwork.grow.training import Replay
    from brickwork.model.fit import FitRecipe
    from brickwork.model.load import LoadedModel
    from brickwork.model.train import Encoded

_COUNT = click.IntRange(min=1)


@click.command()
@click.argument("model")
@click.option("--data", help="Labelled instances (default for `reference`: its probe set).")
@click.option(
    "--for", "functions", multiple=True, metavar="FUNCTIONALITY",
    help="Learn these only; all of the data are watched.",
)  # fmt: skip
@click.option("--only-new", is_flag=True, help="Train only the numbers that growth has added.")
@click.option(
    "--replay", help="Older instances among the new: a memory brick, or labelled instances."
)
@click.option(
    "--share", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.25,
    help="Of each batch's tokens, that is replayed.",
)  # fmt: skip
@click.option("--steps", type=_COUNT, default=200, help="Batches to train on.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), default=3e-4,
              help="Learning rate at most.")  # fmt: skip
@click.option("--batch", type=_COUNT, default=2048, help="Padded tokens of a batch.")
@click.option("--warm-up", type=click.IntRange(min=0), default=20, help="Steps of a rising rate.")
@click.option("--every", type=_COUNT, default=50, help="Measure losses every so many steps.")
@click.option("--mapping", help="How to read a data set: infinity-instruct, or a YAML file.")
@click.option("--instances", type=_COUNT, help="Instances of each functionality (default: all).")
@click.option(
    "--evaluation", type=_COUNT, default=40,
    help="Instances of each functionality that losses are measured on, at most a fifth of it.",
)  # fmt: skip
@click.option("--longest", type=_COUNT, default=512, help="Tokens after which a text is cut.")
@click.option("--revision", help="Branch, tag or commit of MODEL on the Hub.")
@click.option("-o", "--out", type=OUT, help="Folder for the trained model; new.")
@click.option("--report", type=OUT, help="Folder for a page on how the losses went.")
@click.option("--dry-run", is_flag=True, help="Say what would be trained; train nothing.")
@model_options
@output_options
def train(model: str, as_json: bool, **options: Any) -> None:
    """Train MODEL on, and watch what it learns and forgets, functionality by functionality.

    MODEL is a folder, a Hub id, or `reference`. With --only-new it is one that `brickwork grow`
    has written, and all old numbers stay as they are, to the bit; what it says can change all the
    same, and --replay holds against that. How the losses went is in OUT/training.json.

    \b
    Examples:
      brickwork grow train ./larger --data mine.jsonl -o trained
      brickwork grow train ./larger --data mine.jsonl --for Coding --only-new -o trained
      brickwork grow train ./larger --data new.jsonl --replay old.jsonl --share 0.25 -o trained
    """
    from brickwork.model.cost import token_flops
    from brickwork.model.fit import FitRecipe

    data = options["data"] or ("reference" if model == "reference" else None)
    _require_sense(data, options)
    loaded = open_model(model, options, outline=options["dry_run"], tokenizer=True)
    fresh = _fresh(model, options) if options["only_new"] else ()
    parted = _parted(loaded, str(data), options)
    replay = _replay(loaded, parted, options)
    recipe = FitRecipe(
        options["rate"], options["steps"], options["batch"], warm_up=options["warm_up"],
        seed=options["seed"],
    )  # fmt: skip
    document = _plan(loaded, fresh, parted, replay, options) | {
        "data": data_name(str(data)),
        # Twice as much back as forth, whatever part of the model is trained.
        "training_flops": 3 * token_flops(loaded.model) * recipe.steps * recipe.tokens_per_batch,
    }
    if not options["dry_run"]:
        curve = _trained(loaded, (fresh, parted, replay), recipe, options)
        document |= _written(loaded, curve, model, options)
    emit(document, as_json, lambda console: _render(console, document))


def _require_sense(data: str | None, options: Mapping[str, Any]) -> None:
    from brickwork.brick.durable import require_free
    from brickwork.errors import ConfigurationError, ModelError
    from brickwork.report.extra import require_report

    if data is None:
        raise ConfigurationError(
            "a model was to be trained on without anything to learn from; name labelled instances "
            "with --data."
        )
    if options["replay"] is None and written_flags(("share",)):
        raise ConfigurationError(
            "--share was given without --replay, where it has no effect; name what is to be "
            "replayed, or leave it out."
        )
    if options["dry_run"]:
        return
    if options["out"] is None:
        raise ConfigurationError(
            "there is nowhere to write the trained model to; name a folder (-o), or ask for a "
            "--dry-run."
        )
    require_free(options["out"], "a model", ModelError)
    if options["report"] is not None:
        require_report()


def _folder(model: str, options: Mapping[str, Any]) -> Path:
    from brickwork.model.checkpoint import find_checkpoint
    from brickwork.reference.paths import resolve_model

    return find_checkpoint(resolve_model(model), options["revision"], weights=False)


def _fresh(model: str, options: Mapping[str, Any]) -> "Sequence[Fresh]":
    """What growth has added to the model."""
    from brickwork.errors import GrowthError
    from brickwork.grow.record import read_growth

    found = read_growth(_folder(model, options)).fresh
    if not found:
        raise GrowthError(
            f"only what is new of {model!r} was to be trained, and its growth has added no "
            "numbers; leave out --only-new."
        )
    return found


def _parted(loaded: "LoadedModel", data: str, options: Mapping[str, Any]) -> "Parted":
    """The instances, of which those to learn are left on the side of training."""
    from brickwork.cli.grow_data import part
    from brickwork.errors import UnknownNameError

    found = part(loaded, read_labelled(data, options), options)
    for name in options["functions"]:
        if name not in found.measured:
            raise UnknownNameError("functionality of this data", name, found.measured)
    for name in [n for n in found.train if options["functions"] and n not in options["functions"]]:
        del found.train[name]
    return found


def _replay(loaded: "LoadedModel", parted: "Parted", options: Mapping[str, Any]) -> "Replay | None":
    """What is replayed, without what losses are measured on."""
    from brickwork.brick.folder import is_brick_folder, read_brick
    from brickwork.grow.memory import recall
    from brickwork.grow.training import Replay
    from brickwork.measure.instances import encode_instances

    if options["replay"] is None:
        return None
    folder = Path(options["replay"]).expanduser()
    if is_brick_folder(folder):
        known: list[Encoded] = recall(read_brick(folder))
    else:
        older = read_labelled(options["replay"], options)
        found = encode_instances(loaded, older, options["longest"]).sequences
        known = [sequence for sequence in found if sequence is not None]
    held = {_prompt(s) for own in parted.measured.values() for _, s in own}
    return Replay([s for s in known if _prompt(s) not in held], options["share"])


def _prompt(sequence: "Encoded") -> tuple[int, ...]:
    return tuple(sequence.ids[: sequence.response_start])


def _plan(
    loaded: "LoadedModel",
    fresh: "Sequence[Fresh]",
    parted: "Parted",
    replay: "Replay | None",
    options: Mapping[str, Any],
) -> dict[str, Any]:
    every = sum(p.numel() for p in loaded.model.parameters())
    return {
        "out": None if options["out"] is None else str(options["out"]),
        "dry_run": options["dry_run"],
        "model": loaded.name,
        "parameters": every,
        "trained": _numbers(loaded, fresh) if fresh else every,
        "steps": options["steps"],
        "learned": {name: len(own) for name, own in sorted(parted.train.items())},
        "watched": {name: len(own) for name, own in sorted(parted.measured.items())},
        "replayed": len(replay.instances) if replay else 0,
        "share": replay.share if replay else 0.0,
    }


def _numbers(loaded: "LoadedModel", fresh: "Sequence[Fresh]") -> int:
    from brickwork.grow.fresh import fresh_masks

    return sum(
        loaded.model.get_parameter(path).numel() if mask is None else int(mask.sum())
        for path, mask in fresh_masks(loaded.model, fresh).items()
    )


def _trained(
    loaded: "LoadedModel",
    what: "tuple[Sequence[Fresh], Parted, Replay | None]",
    recipe: "FitRecipe",
    options: Mapping[str, Any],
) -> "Curve":
    from brickwork.cli.grow_data import sequences_of
    from brickwork.grow.training import Watch, continue_training

    fresh, parted, replay = what
    watched = {name: sequences_of(own) for name, own in sorted(parted.measured.items())}
    with progress("train", recipe.steps) as advance:
        return continue_training(
            loaded, [s for own in parted.train.values() for s in sequences_of(own)], recipe,
            replay=replay, fresh=fresh, watch=Watch(watched, options["every"]),
            report=lambda _step, _steps, _loss: advance(1),
        )  # fmt: skip


def _written(
    loaded: "LoadedModel", curve: "Curve", model: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    """The checkpoint with the curve beside it, and what the curve says in short."""
    from brickwork.brick.durable import write_file
    from brickwork.brick.files import json_bytes, read_json
    from brickwork.grow.curve import CURVE_FILE
    from brickwork.model.export import RECORD, write_checkpoint

    folder, out = _folder(model, options), options["out"]
    # What growth has added stays known, so that it can be trained alone again.
    record = read_json(folder, RECORD) if (folder / RECORD).is_file() else {"operation": "train"}
    write_checkpoint(loaded.model, out, tokenizer=loaded.tokenizer, record=record)
    write_file(out / CURVE_FILE, json_bytes(CURVE_FILE, curve.model_dump(mode="json")))
    said: dict[str, Any] = {
        "losses": {
            name: {"before": losses[0], "after": losses[-1], "change": curve.change(name)}
            for name, losses in curve.losses.items()
        }
    }
    if options["report"] is not None:
        from brickwork.report.growth import write_curve_report

        said |= {"report": str(write_curve_report(curve, options["report"])[0])}
    return said


def _render(console: "Console", document: Mapping[str, Any]) -> None:
    from rich.table import Table

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    learned = ", ".join(f"{name} ({count:,})" for name, count in document["learned"].items())
    say(f"{document['trained']:,} of {document['parameters']:,} numbers, {document['steps']} steps")
    say(f"learned from: {learned}")
    if document["replayed"]:
        say(f"replayed: {document['replayed']:,} instances, {document['share']:.0%} of each batch")
    say(f"{document['training_flops']:.3g} FLOPs at most")
    if "losses" in document:
        table = Table(
            "functionality", "before", "after", "change",
            caption="nats per response token", caption_justify="left",
        )  # fmt: skip
        for name, own in document["losses"].items():
            row = (f"{own['before']:.3f}", f"{own['after']:.3f}", f"{own['change']:+.3f}")
            table.add_row(f"{name} ({document['watched'][name]})", *row)
        console.print(table)
    if document.get("report"):
        say(f"report: {document['report']}")
    if document["out"]:
        word = "model, not trained (dry run)" if document["dry_run"] else "model"
        say(f"{word}: {document['out']}")
