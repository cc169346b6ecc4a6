"""``brickwork search`` and ``brickwork statistics``: from a recipe to files, on tiny models."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from brickwork.brick.configuration import read_configuration
from brickwork.brick.folder import read_brick
from brickwork.cli.search import search
from brickwork.combine.search_results import LearnedResult, SearchResult
from brickwork.errors import BrickworkError, ConfigurationError, DataError, UnknownNameError
from brickwork.model.export import write_checkpoint
from brickwork.model.load import load_model
from brickwork.report.search import best_method, best_trial, write_search_report
from brickwork.store.store import Store
from tests.bricks import random_brick
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models, a store with two bricks, and a labelled file."""
    folder = tmp_path_factory.mktemp("search")
    for name, seed in (("base", 0), ("x", 1), ("y", 2)):
        model, words = tiny_model("llama", seed), tiny_tokenizer()
        write_checkpoint(model, folder / name, tokenizer=words)
    base = load_model(str(folder / "base")).base
    generator = torch.Generator().manual_seed(0)
    with Store.open(folder / "store") as store:
        for name in ("one", "two"):
            store.add(random_brick("lora", base, generator, name=name))
    records = [
        {"functionality": f, "prompt": f"{f} {n}", "response": f"the {n * 7 % 11}"}
        for f in ("Sums", "Words")
        for n in range(12)
    ]
    (folder / "few.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def run(place: Path, recipe: str, *words: str) -> Result:
    path = place / "recipe.yaml"
    path.write_text(recipe.replace("BASE", str(place / "base")).replace("HERE", str(place)))
    stored = ("--store", str(place / "store"), "--data", str(place / "few.jsonl"))
    return CliRunner().invoke(search, [str(path), *stored, *words])


LEARN = "{base: BASE, bricks: [one, two], learn: {by: %s, steps: 4, layerwise: %s}}"
SEARCH = """
base: BASE
%s
search:
  methods: [linear, task_arithmetic, ties]
  parameters: {weight: [-1, 1], normalize: false, density: [0.5, 1.0]}
  objectives: ["loss:Sums", "loss:Words"]
  trials: 5
  population: 3
"""


def test_learned_weights_make_a_configuration_and_a_brick(place: Path) -> None:
    out = place / "lorahub"
    result = run(place, LEARN % ("lorahub", "false"), "-o", str(out), "--json")
    assert result.exit_code == 0, result.output
    found = LearnedResult.model_validate_json((out / "learned.json").read_text())
    configuration = read_configuration(out / "configuration.yaml")
    assert [use.name for use in configuration.bricks] == ["one", "two"]
    for use in configuration.bricks:
        assert use.weight == pytest.approx(found.weights[use.name][0], abs=1e-6)
    brick = read_brick(out / "brick")
    assert len(brick.spec.lineage.parents) == 2
    assert found.search["learned"] <= found.search["no brick"]  # nothing at all is a candidate
    assert found.instances + found.held_out_instances == 24
    assert str(place) not in (out / "learned.json").read_text().replace(str(place / "base"), "")


def test_weights_of_each_layer_make_a_brick_alone(place: Path) -> None:
    out = place / "entropy"
    result = run(place, LEARN % ("entropy", "true"), "-o", str(out))
    assert result.exit_code == 0, result.output
    assert "uniform, 1/2" in result.stdout
    found = LearnedResult.model_validate_json((out / "learned.json").read_text())
    assert {len(weights) for weights in found.weights.values()} == {2}
    assert (out / "brick").is_dir()
    assert not (out / "configuration.yaml").exists()


@pytest.mark.parametrize("operands", ["bricks: [one, two]", "models: [HERE/x, HERE/y]"])
def test_a_search_shows_the_front_beside_single_methods(place: Path, operands: str) -> None:
    out = place / operands[:6]
    result = run(place, SEARCH % operands, "-o", str(out))
    assert result.exit_code == 0, result.output
    found = SearchResult.model_validate_json((out / "search.json").read_text())
    kinds = [row.kind for row in found.rows]
    assert (kinds.count("trial"), kinds.count("parent")) == (5, 3)
    assert kinds.count("method") == 6
    assert all(row.held_out for row in found.rows if row.front or row.kind != "trial")
    page = (out / "search.html").read_text()
    assert "held-out" in page
    assert "better than" in page
    assert {p.suffix for p in (out / "search-figures").iterdir()} == {".svg", ".png"}
    assert (out / "brick").is_dir() == operands.startswith("bricks")
    # Again: nothing is tried anew, and the document is the same.
    again = run(place, SEARCH % operands, "-o", str(out))
    assert again.exit_code == 0, again.output
    assert SearchResult.model_validate_json((out / "search.json").read_text()) == found


def test_a_dry_run_writes_nothing(place: Path) -> None:
    out = place / "dry"
    result = run(place, SEARCH % "bricks: [one, two]", "-o", str(out), "--dry-run", "--json")
    assert result.exit_code == 0, result.output
    # One method, two weights, two densities.
    assert json.loads(result.stdout)["axes"] == 5
    assert not out.exists()


def test_refuses_to_report_on_what_it_searched_on(place: Path) -> None:
    words = ("-o", str(place / "no"), "--held-out", str(place / "few.jsonl"))
    result = run(place, LEARN % ("loss", "false"), *words)
    assert isinstance(result.exception, DataError)
    assert "24 prompts are among those" in str(result.exception)


def test_refuses_what_is_not_there(place: Path) -> None:
    for recipe, words, message in (
        (LEARN % ("loss", "false"), ("--function", "Sum"), "did you mean 'Sums'"),
        (LEARN.replace("two", "tow") % ("loss", "false"), (), "tow"),
        (SEARCH.replace("loss:Words", "loss:World") % "bricks: [one, two]", (), "loss:Words"),
    ):
        result = run(place, recipe, "-o", str(place / "no"), *words)
        assert isinstance(result.exception, BrickworkError)
        assert message in str(result.exception)


def test_the_page_names_the_best_also_with_one_objective_and_failures(tmp_path: Path) -> None:
    rows = [
        {"number": n, "kind": kind, "label": f"<{n}>", "method": "ties", "parameters": [{}],
         "rank": None, "seed": 0, "values": values, "held_out": values, "front": n == 0,
         "reason": "" if values else "it & failed"}
        for n, kind, values in (
            (0, "trial", {"loss": 1.0}), (1, "trial", None), (-1, "method", {"loss": 2.0}),
        )
    ]  # fmt: skip
    result = SearchResult.model_validate(
        {"brickwork": "0", "base": "b", "fingerprint": "f", "operands": ("a", "b"), "data": "d",
         "instances": 3, "held_out": 2, "objectives": ("loss",), "sampler": "tpe", "seed": 0,
         "recipe": {}, "rows": rows}
    )  # fmt: skip
    write_search_report(result, tmp_path)
    page = (tmp_path / "search.html").read_text()
    assert "&lt;0&gt;" in page
    assert "it &amp; failed" in page
    assert "reaches 1 on held-out ones, better than" in page
    assert best_trial(result).label == "<0>"  # type: ignore[union-attr]
    assert best_method(result).label == "<-1>"  # type: ignore[union-attr]


def test_a_dry_run_misses_bricks_that_are_not_there(place: Path) -> None:
    recipe = place / "absent.yaml"
    recipe.write_text("base: reference\nbricks: [addition, robbot]\nlearn: {steps: 2}\n")
    lines = [
        json.dumps({"functionality": "x", "prompt": f"a {n}", "response": "b"}) for n in range(6)
    ]
    (place / "six.jsonl").write_text("\n".join(lines))
    words = [str(recipe), "--data", str(place / "six.jsonl"), "-o", str(place / "no")]
    with pytest.raises(UnknownNameError, match="did you mean 'robot'"):
        CliRunner().invoke(search, [*words, "--dry-run"], catch_exceptions=False)
    with pytest.raises(ConfigurationError, match="--worker would have no effect"):
        CliRunner().invoke(search, [*words, "--worker", "2"], catch_exceptions=False)
