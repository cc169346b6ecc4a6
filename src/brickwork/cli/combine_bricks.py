"""``brickwork combine`` on a recipe for bricks."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brickwork.cli.console import emit

if TYPE_CHECKING:
    from rich.console import Console

    from brickwork.brick.brick import Brick
    from brickwork.cli.brick_inputs import BrickSource
    from brickwork.combine.brick_recipe import BrickRecipe


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
    from brickwork.brick.durable import require_free
    from brickwork.brick.folder import write_brick
    from brickwork.cli.brick_inputs import BrickSource, name_of
    from brickwork.combine.brick_recipe import parse_brick_recipe, run_brick_recipe
    from brickwork.combine.bricks import require_alike
    from brickwork.errors import BrickFormatError

    require_free(out, "a brick", BrickFormatError)
    recipe = parse_brick_recipe(document, str(where))
    source = BrickSource(options["store"], options["model"])
    bricks = {use.brick: source.find(use.brick) for use in recipe.bricks}
    require_alike([bricks[use.brick] for use in recipe.bricks])
    judge = _judge(recipe, bricks, source, options)
    said: dict[str, Any] = {"out": str(out), "method": recipe.merge_method}
    if options["dry_run"]:
        said["bricks"] = [
            {"name": b.spec.name, "form": b.spec.form, "sites": len(b.spec.sites), "bytes": b.bytes}
            for b in (bricks[use.brick] for use in recipe.bricks)
        ]
    else:
        combined = run_brick_recipe(
            recipe, bricks.__getitem__, seed=options["seed"], name=name_of(out)
        )
        write_brick(combined.brick, out)
        said |= combined.as_document() | judge(combined.brick)
    emit(said, as_json, lambda console: _render(console, said))


def _judge(
    recipe: "BrickRecipe",
    bricks: "Mapping[str, Brick]",
    source: "BrickSource",
    options: Mapping[str, Any],
) -> "Callable[[Brick], dict[str, Any]]":
    """What finds the losses of base, bricks and result; data and fit are checked at once."""
    if options["data"] is None:
        return lambda _brick: {}
    from brickwork.brick.check import require_fit
    from brickwork.cli.combine_evaluate import Contender, judged, model_losses, read_evaluation
    from brickwork.combine.bricks import keys_of

    settings = dict(options)
    if options["seed"] is None:
        settings["seed"] = recipe.seed
    instances = read_evaluation(settings)
    parents = [bricks[use.brick] for use in recipe.bricks]
    if not options["dry_run"]:
        for brick in parents:
            require_fit(brick, source.base)

    def contender(name: str, role: Any, *own: "Brick") -> Contender:
        longest = options["longest"]
        return Contender(
            name, role, lambda: model_losses(source.loaded, instances, longest=longest, bricks=own)
        )

    def judge(child: "Brick") -> dict[str, Any]:
        contenders = [
            contender(source.loaded.name, "base"),
            *(contender(n, "parent", b) for n, b in zip(keys_of(parents), parents, strict=True)),
            contender(child.spec.name, "child", child),
        ]
        return judged(contenders, instances, method=recipe.merge_method, options=settings)

    return judge


def _render(console: "Console", said: dict[str, Any]) -> None:
    from brickwork.cli.combine_view import render_losses

    if "bricks" in said:
        for brick in said["bricks"]:
            line = f"{brick['name']}: {brick['form']} at {brick['sites']} sites"
            console.print(f"{line}, {brick['bytes']:,} bytes", markup=False)
        console.print(f"brick, not written (dry run): {said['out']}", markup=False, soft_wrap=True)
        return
    rank = f", rank {said['rank']}" if said["rank"] else ""
    console.print(f"{said['name']}: {said['form']} at {said['sites']} sites{rank}", markup=False)
    console.print(
        f"error, as a share of what {said['method']} makes of a site: mean "
        f"{said['error_mean']:.3g}, worst {said['error_worst']:.3g}",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    for note in said["notes"]:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    render_losses(console, said)
    console.print(f"brick: {said['out']}", markup=False, soft_wrap=True)
