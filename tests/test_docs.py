"""The generated documentation is what the tables say today."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_generated_pages_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    for path, text in ((generate.TABLES, generate.tables()), (generate.SCHEMA, generate.schema())):
        assert path.read_text(encoding="utf-8") == text, (
            f"docs/reference/{path.name} is out of date; run: python docs/generate.py"
        )
