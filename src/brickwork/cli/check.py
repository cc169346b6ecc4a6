"""``brickwork check``: do bricks fit their base, and do they get into each other's way."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brickwork.cli.brick_inputs import BrickSource
from brickwork.cli.check_view import render_fit, render_interference
from brickwork.cli.console import emit
from brickwork.cli.options import OUT, model_options, output_options, written_flags
from brickwork.errors import ConfigurationError

if TYPE_CHECKING:
    from brickwork.brick.brick import Brick
    from brickwork.combine.kept import Findings
    from brickwork.measure.interference_results import Interference

_FOLDER = click.Path(path_type=Path, file_okay=False, exists=True)
_MODEL_RANK = 16
_OF_BRICKS = ("model", "store", "analysis", "revision", "device", "dtype")
_OF_SEVERAL = ("rank", "analysis", "out")


@click.command()
@click.argument("bricks", nargs=-1, required=True)
@click.option("--model", help="Base of the bricks: do they fit? Needed for PEFT adapters.")
@click.option("--store", type=_FOLDER, help="Store with the bricks (default: the built-in one).")
@click.option("--base", help="Compare whole models, fine-tuned from this one, instead of bricks.")
@click.option(
    "--rank", type=click.IntRange(min=1),
    help="Principal directions compared (default: all that a brick has, 16 of a model).",
)  # fmt: skip
@click.option("--analysis", type=_FOLDER, help="Result of `brickwork analyze`: compare neurons.")
@click.option("--revision", help="Branch, tag or commit of the model on the Hub.")
@click.option("-o", "--out", type=OUT, help="Write interference.json, a page and figures.")
@model_options
@output_options
def check(bricks: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Say whether BRICKS fit their base, and how far they interfere, before they are merged.

    BRICKS are names in the store, folders, or folders of PEFT adapters. One brick is checked
    against its base; of several, every two are compared: signs that conflict, cosine of the
    updates, overlap of principal directions, and what each merge method would keep of them. Every
    number stands beside what chance would give. With --base they are whole models.

    \b
    Examples:
      brickwork check addition --model reference
      brickwork check addition fr-en shell -o conflicts
      brickwork check ./model-a ./model-b --base ./base --json
    """
    if options["out"] is not None:
        from brickwork.report.extra import require_report

        require_report()
    document: dict[str, Any] = {}
    if options["base"] is not None:
        found = _compare_models(bricks, options)
    else:
        if len(bricks) == 1 and (idle := written_flags(_OF_SEVERAL)):
            raise ConfigurationError(
                f"{', '.join(idle)} is about bricks beside each other, and one brick alone is only "
                "checked against its base; name another brick, or leave that out."
            )
        source = BrickSource(options["store"], options["model"], options)
        held = [source.find(reference) for reference in bricks]
        if options["model"] is not None or len(held) == 1:
            document["fit"] = _fits(held, source)
        if len(held) == 1:
            emit(document, as_json, lambda console: render_fit(console, document["fit"]))
            _require_all_fit(document)
            return
        found = _compare_bricks(held, source, options)
    document |= found.model_dump(mode="json")
    if options["out"] is not None:
        document["files"] = _written(found, options["out"])

    def render(console: Any) -> None:
        render_fit(console, document.get("fit", []))
        render_interference(console, found)

    emit(document, as_json, render)
    _require_all_fit(document)


def _require_all_fit(document: dict[str, Any]) -> None:
    """End with the exit code of a caller's mistake, once everything is said."""
    if any(fit["problems"] for fit in document.get("fit", [])):
        raise click.exceptions.Exit(2)


def _fits(bricks: Sequence["Brick"], source: BrickSource) -> list[dict[str, Any]]:
    """For each brick, every reason why it does not fit the base."""
    from brickwork.brick.check import misfits, problems

    return [
        {
            "name": brick.spec.name,
            "form": brick.spec.form,
            "base": source.loaded.name,
            "problems": problems(brick) or misfits(brick, source.base),
        }
        for brick in bricks
    ]


def _compare_bricks(
    bricks: Sequence["Brick"], source: BrickSource, options: dict[str, Any]
) -> "Interference":
    from brickwork.combine.bricks import keys_of, require_alike
    from brickwork.combine.kept import examine
    from brickwork.errors import MergeError
    from brickwork.measure.neuron_writes import compare_neurons
    from brickwork.measure.updates import NEUTRAL, brick_updates, sites_of, values_of

    require_alike(bricks)
    form = bricks[0].spec.form
    if form != "lora" and form not in NEUTRAL:
        raise MergeError(
            f"bricks of the form {form} were to be compared, but only those of the forms "
            f"{', '.join(['lora', *NEUTRAL])} change values that can be; run the bricks "
            "together and evaluate them instead."
        )
    names, sites = keys_of(bricks), sites_of(bricks)
    findings = examine(
        names, (brick_updates(bricks, site) for site in sites), values=values_of(bricks),
        rank=options["rank"], seed=options["seed"],
    )  # fmt: skip
    neurons = []
    if options["analysis"] is not None:
        if form != "lora":
            raise MergeError(
                f"--analysis compares LoRA bricks, and these are {form}; leave it out."
            )
        neurons = compare_neurons(bricks, names, source.loaded, options["analysis"])
    base = bricks[0].spec.base
    return _document(
        findings, options, kind="bricks", base=base.name or base.architecture,
        forms=[b.spec.form for b in bricks], rank=options["rank"], neurons=neurons,
    )  # fmt: skip


def _compare_models(models: Sequence[str], options: dict[str, Any]) -> "Interference":
    from brickwork.combine.kept import examine
    from brickwork.measure.model_updates import ModelUpdates
    from brickwork.model.checkpoint import find_checkpoint
    from brickwork.reference.paths import resolve_model

    if idle := written_flags(_OF_BRICKS):
        raise ConfigurationError(
            f"--base compares whole models, on which {', '.join(idle)} would have no effect; "
            "leave that out, or --base."
        )
    if len(models) < 2:
        raise ConfigurationError(
            f"--base compares at least two whole models, and {len(models)} was given; name two, or "
            "leave --base out to check bricks."
        )
    folders = [
        find_checkpoint(resolve_model(name), None, weights=True)
        for name in (options["base"], *models)
    ]
    names = [Path(name).name or name for name in models]
    if len(set(names)) < len(names):
        names = [f"{place + 1}: {name}" for place, name in enumerate(names)]
    updates, rank = ModelUpdates(folders[0], folders[1:], names), options["rank"] or _MODEL_RANK
    findings = examine(
        names, updates.sites(rank, options["seed"]), values=updates.values, rank=rank,
        seed=options["seed"],
    )  # fmt: skip
    return _document(
        findings, options, kind="models", base=Path(options["base"]).name,
        forms=["model"] * len(models), rank=rank, neurons=[],
    )  # fmt: skip


def _document(findings: "Findings", options: dict[str, Any], **facts: Any) -> "Interference":
    from brickwork.measure.interference_results import Interference

    return Interference(
        brickwork=version("brickwork"),
        names=list(findings.sites),
        sites=findings.sites,
        rows="all" if findings.every_row else "some",
        pairs=findings.pairs,
        kept=findings.kept,
        left_out=findings.left_out,
        seed=options["seed"],
        **facts,
    )


def _written(found: "Interference", folder: Path) -> list[str]:
    from brickwork.brick.durable import write_file
    from brickwork.brick.files import json_bytes
    from brickwork.measure.interference_results import INTERFERENCE_FILE
    from brickwork.report.interference import write_interference_report

    pages = write_interference_report(found, folder)
    content = json_bytes(INTERFERENCE_FILE, found.model_dump(mode="json"))
    write_file(folder / INTERFERENCE_FILE, content)
    return [INTERFERENCE_FILE, *(str(path.relative_to(folder)) for path in pages)]
