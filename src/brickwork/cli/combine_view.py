"""What ``brickwork combine`` says of a merge of models: before the work, and after it."""

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from brickwork.combine.plan import MergePlan
    from brickwork.combine.sources import Sources


def describe_plan(plan: "MergePlan", sources: "Sources", workers: int | None) -> dict[str, Any]:
    """The plan in numbers; of the models' weights only the headers are read."""
    from math import prod

    from brickwork.combine.memory import most_workers, peak_memory
    from brickwork.combine.small_files import model_name, plan_hash

    operands = {
        operand
        for tensor in plan.tensors
        for operand in (*tensor.operands, *([tensor.base] if tensor.base else []))
    }
    read = {(o.ref, o.tensor): sources.held(o).bytes for o in operands}
    sizes = [prod(t.shape) for t in plan.tensors]
    threads = workers or most_workers(plan)
    return {
        "models": [model_name(ref, folder) for ref, folder in plan.folders.items()],
        "plan": plan_hash(plan),
        "methods": dict(Counter(tensor.method for tensor in plan.tensors)),
        "tensors": len(plan.tensors),
        "parameters": sum(sizes),
        "bytes_to_read": sum(read.values()),
        "bytes_to_write": sum(
            size * t.dtype.itemsize for size, t in zip(sizes, plan.tensors, strict=True)
        ),
        "peak_memory": peak_memory(plan, threads),
        "workers": threads,
        "seed": plan.seed,
        "notes": list(plan.notes),
    }


def render(console: "Console", said: dict[str, Any], dry_run: bool) -> None:
    """The same for a person."""
    from rich.table import Table

    table = Table(show_header=False)
    table.add_row("models", ", ".join(said["models"]))
    methods = ", ".join(f"{name} ({count} tensors)" for name, count in said["methods"].items())
    table.add_row("methods", methods)
    table.add_row("parameters", f"{said['parameters']:,} in {said['tensors']:,} tensors")
    table.add_row("reads", _size(said["bytes_to_read"]))
    table.add_row("writes", _size(said["bytes_to_write"]))
    memory = f"{_size(said['peak_memory'])} at most, with {said['workers']} workers"
    table.add_row("memory", memory)
    if not dry_run:
        rate = f"{said['seconds']:.2f} s, {said['megabytes_per_second']:,.0f} MB/s read and written"
        table.add_row("took", rate)
    if said.get("resumed_tensors"):
        table.add_row("went on", f"{said['resumed_tensors']} tensors were made before")
    console.print(table)
    for note in said["notes"]:
        console.print(f"note: {note}", markup=False, soft_wrap=True)
    render_losses(console, said)
    word = "model, not written (dry run)" if dry_run else "model"
    console.print(f"{word}: {said['out']}", markup=False, soft_wrap=True)


def render_losses(console: "Console", said: dict[str, Any]) -> None:
    """The losses of base, parents and result, and where the page with figures is."""
    from rich.table import Table

    if "tradeoff" not in said:
        return
    found = said["tradeoff"]
    table = Table(found["by"], caption="nats per response token", caption_justify="left")
    for member in found["members"]:
        table.add_column(f"{member['name']} ({member['role']})", justify="right", overflow="fold")
    for name, count in found["instances"].items():
        losses = (f"{member['losses'][name]:.3f}" for member in found["members"])
        table.add_row(f"{name} ({count})", *losses)
    console.print(table)
    if said.get("report"):
        console.print(f"report: {said['report']}", markup=False, soft_wrap=True)


def _size(size: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:,.1f} {unit}" if unit != "bytes" else f"{size:,.0f} bytes"
        size /= 1000
    raise AssertionError
