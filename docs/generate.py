"""Write the generated parts of the documentation: ``python docs/generate.py``."""

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from brickwork.brick.effects import EFFECTS
from brickwork.brick.forms import forms, load_target
from brickwork.build.moe_targets import MOE_TARGETS
from brickwork.combine.method import Method, Parameter
from brickwork.combine.methods import methods
from brickwork.grow.growths import GrowthRow, growths
from brickwork.grow.selectors import SELECTORS
from brickwork.grow.strategies import strategies
from brickwork.grow.strategy import Strategy
from brickwork.measure.need import NEEDS
from brickwork.measure.partition import PARTITIONS
from brickwork.measure.results import Analysis
from brickwork.model.architecture import architectures
from brickwork.route.routers import ROUTERS
from brickwork.update.method import EditMethod
from brickwork.update.methods import edit_methods

REFERENCE = Path(__file__).parent / "reference"
TABLES, SCHEMA = REFERENCE / "tables.md", REFERENCE / "analysis.md"
ABOUT_SCHEMA = """# What an analysis writes

Written by `python docs/generate.py`; do not edit.

`brickwork analyze` writes `analysis.json`, one object of the type `Analysis` below. All types are
in `brickwork.measure.results`; `Analysis.model_json_schema()` gives the same as JSON Schema, and
`brickwork.report.read.read_analysis(folder)` reads and checks a file. Every number is finite.

Beside it lies `scores.safetensors` with the scores of all units, for each layer N:

| tensor | axes | what |
| --- | --- | --- |
| `layers.N.mlp.neurons.activation` | neurons functions | functionality scores |
| `layers.N.mlp.neurons.selectivity` | neurons functions | score above the next; -inf: resident |
| `layers.N.mlp.neurons.attribution` | neurons functions | scores by gradient times activation |
| `layers.N.mlp.neurons.resident` | resident | numbers of the resident neurons |
| `layers.N.attn.heads.activation` | heads functions | functionality scores of the heads |

Functions are in the order of `data.functions`. The folders `rows` and `attributions` hold the
activations and attributions themselves (memory-mapped `.npy`, one row for each localisation
instance, or for those that gradients were taken of), `kept` what a second run takes up; all three
can be deleted when the analysis is done."""
FAMILIES = (
    "Linear maps, norms and blocks are found in any decoder model; for these families every role "
    "has a name."
)
ABOUT_MERGES = (
    "A parameter marked with a star has a value for each model, any other one for all. Where no "
    "default stands in brackets, a recipe must give it."
)
ABOUT_EDITS = (
    "An option is written as `--set name=value`; its default stands in brackets. A method that "
    "edits 0 layers finds the places itself."
)
ABOUT_GROWTHS = (
    "`brickwork grow PART --by NAME`. In a recipe an option is written by this name, on the "
    "command line as `--name`; a list is given there one by one, in the singular. Where no default "
    "stands in brackets, an option must be given, or one of two that say the same."
)
ABOUT_STRATEGIES = "`brickwork grow task --strategy NAME --set OPTION=VALUE`."
ABOUT_SELECTORS = "What a memory keeps of a task: the option `selector` of strategies with replay."
Rows = list[tuple[str, ...]]


def table(head: tuple[str, ...], rows: Rows) -> str:
    """A Markdown table."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables() -> str:
    """The tables of forms, effects, methods and families, from the rows that the code runs by."""
    of_forms = [
        (
            f"`{f.name}`", f.meaning, f.effect, ", ".join(f.sites),
            "; ".join(" + ".join(f"{s} ({' '.join(a)})" for s, a in o.items()) for o in f.slots),
            f.peft or "-", f.source,
        )
        for f in forms().values()
    ]  # fmt: skip
    of_effects = [
        (f"`{name}`", row.meaning, "any" if row.weighted else "1", "yes" if row.primitive else "no")
        for name, row in EFFECTS.items()
    ]
    partitions = [(f"`{r.name}`", r.meaning, r.needs, r.source) for r in PARTITIONS.values()]
    needs = [
        (f"`{name}`", r.meaning, ", ".join(sorted(r.units)), r.source) for name, r in NEEDS.items()
    ]
    routers = [
        (f"`{n}`", r.meaning, "yes" if r.needs_activation else "no", r.source)
        for n, r in ROUTERS.items()
    ]
    targets = [
        (f"`{n}`", ", ".join(t.dense), t.shared, t.routing, t.source)
        for n, t in MOE_TARGETS.items()
    ]
    merges = [
        (f"`{m.name}`", m.meaning, *_needs(m), "; ".join(map(_setting, m.parameters)), m.source)
        for m in methods().values()
    ]
    edits = [
        (
            f"`{m.name}`", m.meaning, m.form, m.facts, str(m.layers), ", ".join(m.needs) or "-",
            "; ".join(_options(m)) or "-", m.source,
        )
        for m in edit_methods().values()
    ]  # fmt: skip
    grown = [
        (r.part, f"`{r.name}`", r.meaning, r.keeps, "; ".join(_fields_told(r)), r.source)
        for r in growths().values()
    ]
    learned = [
        (f"`{r.name}`", r.meaning, "; ".join(_fields_told(r)) or "-", r.source)
        for r in strategies().values()
    ]
    selected = [(f"`{r.name}`", r.meaning, r.source) for r in SELECTORS.values()]
    families = [(f"`{name}`",) for name in sorted(architectures())]
    parts = (
        "# Tables\n\nWritten by `python docs/generate.py`; do not edit.",
        "## Forms",
        table(("form", "meaning", "effect", "sites", "slots (axes)", "PEFT", "source"), of_forms),
        "## Effects",
        table(("effect", "meaning", "weight", "runs"), of_effects),
        "## Partitions",
        table(("method", "meaning", "needs", "source"), partitions),
        "## Needs, by which `carve` chooses",
        table(("method", "meaning", "units", "source"), needs),
        "## Routers",
        table(("kind", "meaning", "needs the activations", "source"), routers),
        "## Targets of `moe`",
        table(("target", "dense families", "shared expert", "routing", "source"), targets),
        "## Merge methods",
        ABOUT_MERGES,
        table(("method", "meaning", "base", "models", "parameters", "source"), merges),
        "## Edit methods",
        ABOUT_EDITS,
        table(
            ("method", "meaning", "form", "facts", "layers", "needs", "options", "source"), edits
        ),
        "## Growths",
        ABOUT_GROWTHS,
        table(("part", "name", "meaning", "keeps", "options", "source"), grown),
        "## Strategies for a stream of tasks",
        ABOUT_STRATEGIES,
        table(("strategy", "meaning", "options", "source"), learned),
        "## Selectors of memories",
        ABOUT_SELECTORS,
        table(("selector", "meaning", "source"), selected),
        "## Families",
        FAMILIES,
        table(("family",), families),
    )
    return "\n\n".join(parts) + "\n"


def _options(method: EditMethod) -> Iterator[str]:
    """An edit method's options, each with its default and what it is."""
    return _told(method.options_type)


def _fields_told(row: GrowthRow | Strategy) -> Iterator[str]:
    """The options of a growth or a strategy."""
    return _told(load_target(row.options))


def _told(options: type[BaseModel]) -> Iterator[str]:
    """The fields of options, each with its default, if it has one, and what it is."""
    for name, field in options.model_fields.items():
        about = " ".join((field.description or "").split())
        known = field.is_required() or field.default is None
        default = "" if known else f" [{field.default}]"
        yield f"`{name}`{default}: {about}" if about else f"`{name}`{default}"


def _needs(method: Method) -> tuple[str, str]:
    """Whether a merge method has a base, and how many other models it takes."""
    base = {"required": "needed", "optional": "if named", "operand": "one of the models"}
    number = f"{method.least}" if method.most == method.least else f"{method.least} or more"
    brings = f", with {method.statistics} statistics" if method.statistics else ""
    return base[method.base], number + brings


def _setting(parameter: Parameter) -> str:
    """A parameter with its default and its meaning."""
    star = "*" if parameter.scope == "operand" else ""
    default = "" if parameter.default is None else f" ({str(parameter.default).lower()})"
    return f"`{parameter.name}`{star}{default} {parameter.meaning}"


def schema() -> str:
    """The types of an analysis, each with its fields and what they mean."""
    found = Analysis.model_json_schema()
    kinds = {"Analysis": found, **found["$defs"]}
    return "\n\n".join([ABOUT_SCHEMA, *(_type(name, kinds[name]) for name in kinds)]) + "\n"


def _type(name: str, kind: dict[str, Any]) -> str:
    about = inspect.cleandoc(kind.get("description", ""))
    return f"## {name}\n\n{about}\n\n{table(('field', 'type', 'meaning'), list(_fields(kind)))}"


def _fields(kind: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for field, value in kind["properties"].items():
        meaning = " ".join(value.get("description", "").split())
        yield f"`{field}`", _words(value), meaning.replace("|", "\\|")


def _words(value: dict[str, Any]) -> str:
    """A JSON Schema type in a few words."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in value or "enum" in value:
        return " or ".join(f"`{word}`" for word in value.get("enum", [value.get("const")]))
    if "anyOf" in value:
        return " or ".join(_words(one) for one in value["anyOf"])
    if value["type"] == "array":
        return f"list of {_words(value['items'])}"
    if value["type"] == "object":
        return f"name -> {_words(value['additionalProperties'])}"
    return str(value["type"])


if __name__ == "__main__":
    TABLES.write_text(tables(), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")
