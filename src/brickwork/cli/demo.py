"""``brickwork demo``: the whole idea on the embedded model, with no network."""

from typing import TYPE_CHECKING, Any

import click

from brickwork.cli.console import emit, progress, stderr_console
from brickwork.cli.options import output_options

if TYPE_CHECKING:
    from rich.console import Console


@click.command()
@output_options
def demo(as_json: bool) -> None:
    """Run instructions of several kinds on the embedded model, each with its own bricks.

    For each instruction: the bricks that were retrieved from the built-in store, the answer of
    the model put together for it beside that of the bare base, the loss of a reference answer
    under both (nats per token, lower is better), and what each brick did.
    """
    from brickwork.model.load import load_model
    from brickwork.reference.builtin import builtin_store
    from brickwork.reference.demo import EXAMPLES, run_demo
    from brickwork.reference.paths import NAME, resolve_model

    if not as_json:
        stderr_console().print("Loading the embedded model and its bricks ...", style="dim")
    loaded = load_model(resolve_model(NAME), device="cpu", dtype="float32", name=NAME)
    with builtin_store() as store, progress("instructions", len(EXAMPLES)) as advance:
        document = run_demo(loaded, store, advance)
    emit(document, as_json, lambda console: _render(console, document))


def _render(console: "Console", document: dict[str, Any]) -> None:
    model, store = document["model"], document["store"]
    console.print(
        f"[bold]{model['name']}[/]: {model['parameters'] / 1e6:.1f}M parameters, "
        f"{len(store['bricks'])} bricks in the store: {', '.join(store['bricks'])}"
    )
    console.print(f"retrieval: {store['embedder_reason']}", style="dim", markup=False)
    for run in document["runs"]:
        console.print()
        _render_run(console, run)


def _render_run(console: "Console", run: dict[str, Any]) -> None:
    from rich.markup import escape

    chosen = [brick for brick in run["bricks"] if brick["weight"]]
    others = [brick for brick in run["bricks"] if not brick["weight"]]
    console.rule(f"[bold]{run['functionality']}[/]", align="left", style="dim")
    console.print(f"[bold]{escape(run['instruction'])}[/]")
    for brick in chosen:
        console.print(
            f"  brick    [green]{brick['name']}[/] score {brick['score']:.2f} "
            f"(threshold {brick['threshold']:.2f}), weight {brick['weight']:g}"
        )
    if not chosen and others:
        best = others[0]
        console.print(
            f"  brick    none; the best, {best['name']}, scores {best['score']:.2f} "
            f"(threshold {best['threshold']:.2f}): the bare base answers"
        )
    console.print(f"  answer   [bold]{escape(run['answer'].strip())}[/]")
    if chosen:
        console.print(f"  base     {escape(run['base_answer'].strip())}", style="dim")
        console.print(
            f"  loss     {run['loss']:.2f} with, {run['base_loss']:.2f} without "
            f"(of {run['reference_answer']!r})",
            markup=False,
        )
    for part in run["trace"]["bricks"]:
        moved = part["moved"]
        most = max(range(len(moved)), key=moved.__getitem__)
        console.print(
            f"  trace    {part['name']}: {part['gain']:+.2f} nats/token; moves layer {most} most "
            f"({moved[most]:.0%} of its states)",
            style="dim",
        )
    console.print(f"  time     {run['seconds']:.2f} s", style="dim")
