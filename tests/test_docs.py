"""The generated documentation is what the tables say today."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_tables_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert generate.TABLES.read_text(encoding="utf-8") == generate.tables(), (
        "docs/reference/tables.md is out of date; run: python docs/generate.py"
    )
