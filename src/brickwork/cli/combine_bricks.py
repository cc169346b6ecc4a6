"""``brickwork combine`` on a recipe for bricks."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from brickwork.cli.console import emit

if TYPE_CHECKING:
    from rich.console import Console


def combine_bricks(
    document: dict[str, Any], where: Path, out: Path, as_json: bool, options: dict[str, Any]
) -> None:
    """Merge the bricks and write the result as a brick's folder, which PEFT reads too.

    Args:
        document: the recipe, as it was read.
        where: its file, for errors.
        out: folder for the result.
        as_json: whether to print JSON.
        options: those of the command.
    """
    from brickwork.brick.folder import write_brick
    from brickwork.cli.brick_inputs import BrickSource
    from brickwork.combine.brick_recipe import parse_brick_recipe, run_brick_recipe

    recipe = parse_brick_recipe(document, str(where))
    source = BrickSource()
    if options["dry_run"]:
        bricks = [source.find(use.brick) for use in recipe.bricks]
        said: dict[str, Any] = {
            "out": str(out),
            "method": recipe.merge_method,
            "bricks": [{"name": b.spec.name, "form": b.spec.form, "sites": len(b.spec.sites),
                        "bytes": b.bytes} for b in bricks],
        }  # fmt: skip
    else:
        combined = run_brick_recipe(recipe, source.find, seed=options["seed"], name=out.name)
        write_brick(combined.brick, out)
        said = {"out": str(out), "method": recipe.merge_method, **combined.as_document()}
    emit(said, as_json, lambda console: _render(console, said))


def _render(console: "Console", said: dict[str, Any]) -> None:
    if "bricks" in said:
        for brick in said["bricks"]:
            line = f"{brick['name']}: {brick['form']} at {brick['sites']} sites"
            console.print(f"{line}, {brick['bytes']:,} bytes", markup=False)
        console.print(f"brick, not written (dry run): {said['out']}", markup=False, soft_wrap=True)
        return
    rank = f", rank {said['rank']}" if said["rank"] else ""
    console.print(f"{said['name']}: {said['form']} at {said['sites']} sites{rank}", markup=False)
    console.print(f"relative error: {said['error_mean']:.3g}, worst {said['error_worst']:.3g}")
    for note in said["notes"]:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    console.print(f"brick: {said['out']}", markup=False, soft_wrap=True)
