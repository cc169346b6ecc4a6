"""What ``brickwork check`` found, for a person."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from brickwork.measure.interference_results import Beside, Interference, Sampled


def render_fit(console: "Console", fits: Sequence[dict[str, Any]]) -> None:
    """Whether each brick fits, and every reason if it does not."""
    for fit in fits:
        verdict = "does not fit" if fit["problems"] else "fits"
        console.print(f"{fit['name']} ({fit['form']}) {verdict} {fit['base']}", markup=False)
        for problem in fit["problems"]:
            console.print(f"  - {problem}", markup=False)


def render_interference(console: "Console", found: "Interference") -> None:
    """Pairs with verdicts, then what each method keeps."""
    console.print(_pairs(found))
    for pair in found.pairs:
        console.print(f"{pair.a} and {pair.b}: {pair.verdict}; {pair.advice}", markup=False)
    limits = found.thresholds
    console.print(
        f"Redundant from cosine {limits.redundant:g}, contradicting from "
        f"{limits.contradicting:g}, colliding from cosine or overlap of outputs above chance of "
        f"{limits.colliding:g}. In brackets: by chance.", style="dim", markup=False,
    )  # fmt: skip
    console.print(_kept(found))
    for row in found.neurons:
        shares = ", ".join(f"{name} {share:.1%}" for name, share in row.energy.items())
        console.print(
            f"{row.function} neurons get {shares} of the change of FFNs (chance {row.share:.0%})",
            markup=False,
        )
    for name in found.left_out:
        console.print(f"not tried: {name}: {found.left_out[name]}", style="dim", markup=False)
    if found.rows == "some":
        console.print("Signs were counted, and methods tried, on a part of the rows.", style="dim")


def _pairs(found: "Interference") -> Table:
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("pair", overflow="fold")
    for column in ("cosine", "conflicts", "by size", "inputs", "outputs", "length ratio"):
        table.add_column(column, justify="right")
    for pair in found.pairs:
        numbers = pair.numbers
        cells = ["-"] * 6
        if numbers:
            cells = [
                f"{numbers.cosine.value:+.3f} (0)", _share(numbers.conflicts),
                _share(numbers.weighted), _beside(numbers.inputs), _beside(numbers.outputs),
                f"{numbers.ratio:.2f}",
            ]  # fmt: skip
        table.add_row(f"{pair.a}, {pair.b}", *cells)
    return table


def _kept(found: "Interference") -> Table:
    table = Table("method keeps of", box=None, padding=(0, 1), header_style="bold")
    for name in found.names:
        table.add_column(name, justify="right", overflow="fold")
    for row in found.kept:
        set_to = ", ".join(f"{k} {v:g}" for k, v in row.parameters.items())
        label = f"{row.method} ({set_to})" if set_to else row.method
        table.add_row(label, *(f"{row.kept[name]:.2f}" for name in found.names))
    return table


def _beside(number: "Beside") -> str:
    return f"{number.value:.3f} ({number.expected:.3f})"


def _share(share: "Sampled | None") -> str:
    return "-" if share is None else f"{share.value:.1%} ({share.expected:.0%})"
