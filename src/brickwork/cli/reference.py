"""``brickwork reference``: the embedded model, how good it is, and how it was made."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from brickwork.cli.console import emit, stderr_console
from brickwork.cli.options import output_options

if TYPE_CHECKING:
    from rich.console import Console

_DATA = click.option(
    "--data",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="Folder with instructions/ and text/.",
)


@click.group()
def reference() -> None:
    """The reference model that comes with the package, its bricks and its probe set."""


@reference.command()
@output_options
def show(as_json: bool) -> None:
    """Show where the reference model is, what it was trained on, and its built-in bricks."""
    import json

    from brickwork.brick.folder import read_brick
    from brickwork.reference.paths import bricks_folder, model_folder

    folder = model_folder()
    bricks = [read_brick(f).spec for f in sorted(bricks_folder().iterdir()) if f.is_dir()]
    document = {
        "model": str(folder),
        "training": json.loads((folder / "training.json").read_text()),
        "bricks": [
            {"name": b.name, "form": b.form, "function": b.function.text, "data": b.lineage.data,
             "metrics": [m.model_dump() for m in b.metrics]}
            for b in bricks
        ],
    }  # fmt: skip
    emit(document, as_json, lambda console: _render(console, document))


@reference.command()
@click.option("--model", default="reference", help="Hub id, folder, or 'reference'.")
@output_options
def evaluate(model: str, as_json: bool) -> None:
    """Measure a model's loss on the packaged probe set, in nats per response token."""
    from brickwork.measure.perplexity import response_losses
    from brickwork.model.load import load_model
    from brickwork.reference.paths import resolve_model
    from brickwork.reference.probe import probe_instances
    from brickwork.reference.tokenizer import encode_instances

    loaded = load_model(resolve_model(model), device="cpu", dtype="float32")
    assert loaded.tokenizer is not None
    probe = probe_instances()
    encoded = encode_instances(loaded.tokenizer, probe, loaded.model.config.max_position_embeddings)
    losses = response_losses(loaded.model, encoded, [i.functionality for i in probe])
    document = {"model": model, "instances": len(probe), "response_loss": losses}
    emit(document, as_json, lambda console: _render_losses(console, losses))


@reference.command()
@_DATA
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--tokens", type=click.IntRange(min=1), default=None, help="Token budget.")
@click.option("--device", default="cpu", help="Where to compute: cpu or cuda.")
@output_options
def train(data: Path, out: Path, tokens: int | None, device: str, as_json: bool) -> None:
    """Train the reference model, or go on after the last checkpoint in --out."""
    from dataclasses import replace

    from brickwork.reference.train import Recipe, train_reference

    recipe = Recipe() if tokens is None else replace(Recipe(), tokens=tokens)
    result = train_reference(data, out, recipe, device, _say)
    emit(result, as_json, lambda console: _render_losses(console, result["response_loss"]))


@reference.command()
@_DATA
@click.option("--model", default="reference", help="The base to train on.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.argument("names", nargs=-1)
@output_options
def bricks(data: Path, model: str, out: Path, names: tuple[str, ...], as_json: bool) -> None:
    """Train the built-in bricks, or those named, each into a folder of --out."""
    from brickwork.reference.bricks import build_all
    from brickwork.reference.paths import resolve_model

    built = build_all(data, Path(resolve_model(model)), out, names, _say)
    document = {b.spec.name: [m.model_dump() for m in b.spec.metrics] for b in built}
    emit(document, as_json, lambda console: console.print(f"{len(built)} bricks in {out}"))


@reference.command()
@_DATA
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), required=True)
@output_options
def probe(data: Path, out: Path, as_json: bool) -> None:
    """Draw the probe set again from the data's own probe file."""
    from brickwork.reference.probe import write_probe

    count = write_probe(data, out)
    emit({"instances": count}, as_json, lambda console: console.print(f"{count} in {out}"))


def _say(line: str) -> None:
    stderr_console().print(line, markup=False, highlight=False)


def _render(console: "Console", document: dict[str, Any]) -> None:
    training = document["training"]
    console.print(f"reference model: {document['model']}", soft_wrap=True, markup=False)
    console.print(f"trained on {training['tokens']:,} tokens in {training['seconds'] / 60:.0f} min")
    _render_losses(console, training["response_loss"])
    for brick in document["bricks"]:
        console.print(f"\n[bold]{brick['name']}[/] ({brick['form']}): {brick['function']}")
        console.print(f"  {brick['data']}", style="dim", markup=False)
        for metric in brick["metrics"]:
            console.print(
                f"  {metric['name']}: {metric['before']:.3f} -> {metric['after']:.3f} "
                f"{metric['unit']}",
                markup=False,
            )


def _render_losses(console: "Console", losses: dict[str, float]) -> None:
    from rich.table import Table

    table = Table("functionality", "loss (nats per response token)")
    for name, loss in losses.items():
        table.add_row(name, f"{loss:.3f}")
    console.print(table)
