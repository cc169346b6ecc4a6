"""``brickwork store``: every command, for people and as JSON, and what they refuse."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from brickwork.brick.folder import write_brick
from brickwork.brick.spec import Function
from brickwork.cli import store as commands
from brickwork.cli.main import main
from brickwork.store.store import Store
from tests.bricks import paper_base
from tests.store_children import BASE, small_brick

FUNCTION = Function(text="French to English", labels=("Translation",), exemplars=("le chat",))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose store holds two versions of one brick."""
    monkeypatch.setenv("BRICKWORK_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    with Store.open(tmp_path / "store") as store:
        store.add(small_brick("fr-en", 0, function=FUNCTION, licence="MIT"), tags=["prod"])
        store.add(small_brick("fr-en", 1, function=FUNCTION))
    return tmp_path


@pytest.fixture
def said(home: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run a command and return what it printed; as parsed JSON if that was asked for."""

    def run(*words: object, code: int = 0) -> Any:
        found = main(["store", *map(str, words)])
        out, err = capsys.readouterr()
        assert found == code, err
        if code == 2:
            return err
        return json.loads(out) if "--json" in words else out

    return run


def peft_folder(folder: Path) -> Path:
    write_brick(small_brick("any", 5), folder)
    (folder / "brick.json").unlink()
    return folder


def test_adds_lists_and_shows(said: Any, home: Path) -> None:
    write_brick(small_brick("shell"), home / "one")
    write_brick(small_brick("shell", 1), home / "two")
    plan = said("add", home / "one", home / "two", "--dry-run", "--json")["would_add"]
    assert [(row["name"], row["known_as"], row["bytes"] > 0) for row in plan] == [
        ("shell", None, True),
        ("shell", None, True),
    ]
    added = said("add", home / "one", home / "two", "--tag", "new", "--json")["bricks"]
    assert [(b["reference"], b["tags"]) for b in added] == [
        ("shell@1", ["new"]),
        ("shell@2", ["new"]),
    ]
    assert "is there as shell@1" in said("add", home / "one", "--dry-run")
    listed = said("list", "--json")["bricks"]
    assert [b["reference"] for b in listed] == ["fr-en@1", "fr-en@2", "shell@1", "shell@2"]
    assert "fr-en@2" in said("list", "--label", "Translation")
    assert "No brick is there that fits" in said("list", "--form", "ia3")
    shown = said("show", "fr-en@1", "--json")
    assert shown["spec"]["licence"] == "MIT"
    assert Path(shown["path"]).is_dir()
    assert "French to English" in said("show", "fr-en")


def test_the_options_say_what_a_brick_is(said: Any, home: Path) -> None:
    write_brick(small_brick("shell", function=FUNCTION), home / "one")
    (home / "examples.txt").write_text("first line\n\n  second line\n", encoding="utf-8")
    words = ("--name", "bash", "--function", "Shell", "--exemplar", "ls", "--licence", "MIT")
    file = ("--exemplars", home / "examples.txt")
    (added,) = said("add", home / "one", *words, *file, "--json")["bricks"]
    assert (added["name"], added["licence"]) == ("bash", "MIT")
    assert added["function"] == {
        "text": "Shell",
        "labels": ["Translation"],
        "exemplars": ["ls", "first line", "second line"],
    }


def test_adds_a_peft_adapter_with_its_base(
    said: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = peft_folder(home / "My Adapter_v2")
    assert "does not say what its base is; add --base MODEL" in said("add", folder, code=2)
    monkeypatch.setattr(commands, "_load_base", lambda model: BASE)
    (added,) = said("add", folder, "--base", "tiny", "--label", "Coding", "--json")["bricks"]
    assert (added["reference"], added["form"]) == ("my-adapter_v2@1", "lora")
    assert added["function"]["labels"] == ["Coding"]
    with Store.open(home / "store") as store:
        assert store.get("my-adapter_v2").tensors.keys() == small_brick("any", 5).tensors.keys()


def test_a_brick_of_another_base_is_refused_if_a_base_is_named(
    said: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_brick(small_brick("shell"), home / "one")
    monkeypatch.setattr(commands, "_load_base", lambda model: paper_base(weights="other"))
    assert "does not fit this base" in said("add", home / "one", "--base", "tiny", code=2)


def test_nothing_is_added_if_one_path_is_wrong(said: Any, home: Path) -> None:
    write_brick(small_brick("shell"), home / "one")
    (home / "empty").mkdir()
    message = "holds neither brick.json nor adapter_config.json"
    assert message in said("add", home / "one", home / "empty", code=2)
    assert "--name names one brick" in said("add", home, home, "--name", "x", code=2)
    assert "name: String should match" in said("add", home / "one", "--name", "A B", code=2)
    assert len(said("list", "--json")["bricks"]) == 2


def test_searches(said: Any) -> None:
    hits = said("search", "translate", "from", "french", "--json")["bricks"]
    assert [hit["reference"] for hit in hits] == ["fr-en@2"]
    assert hits[0]["score"] > 0
    assert "fr-en@2" in said("search", "french")
    assert "Nothing found." in said("search", "knitting")


def test_removes_restores_and_collects(said: Any) -> None:
    removed = said("remove", "fr-en", "fr-en", "--json")["bricks"]
    assert [(b["reference"], b["deleted"]) for b in removed] == [("fr-en@2", True)]
    assert "fr-en@2 (removed)" in said("list", "--removed")
    assert said("restore", "fr-en", "--json")["bricks"][0]["deleted"] is False
    assert "undo with brickwork store restore" in said("remove", "fr-en@1")
    assert "Would delete 1 bricks" in said("gc", "--older-than", 0, "--dry-run")
    assert said("gc", "--json")["bricks"] == []
    assert said("gc", "--older-than", 0, "--json")["bricks"] == ["fr-en@1"]
    assert "no brick is called 'fr-en@1'; did you mean 'fr-en@2'" in said("show", "fr-en@1", code=2)


def test_tags(said: Any) -> None:
    assert said("tag", "fr-en", "b", "a", "--json")["bricks"][0]["tags"] == ["a", "b"]
    assert said("tag", "fr-en", "b", "--remove", "--json")["bricks"][0]["tags"] == ["a"]
    assert "cannot be a tag" in said("tag", "fr-en", "a b", code=2)


def test_exports_and_imports(said: Any, home: Path) -> None:
    file, other = home / "bricks.tar", ("--store", home / "other")
    assert "Exported to" in said("export", "fr-en@1", "fr-en@2", "-o", file)
    assert "exists; choose another file" in said("export", "fr-en", "-o", file, code=2)
    assert said("export", "fr-en@1", "-o", file, "--force", "--json")["bricks"][0]["version"] == 1
    assert "more than the 10 that are read" in said("import", file, *other, "--limit", 10, code=2)
    assert said("import", file, *other, "--json")["bricks"][0]["tags"] == ["prod"]
    assert "fr-en@1" in said("list", *other)


def test_verifies_with_an_exit_code(said: Any, home: Path) -> None:
    assert said("verify", "--json") == {"bricks": 2, "problems": []}
    with Store.open(home / "store") as store:
        (store.path("fr-en") / "adapter_model.safetensors").unlink()
    assert "2 bricks, 1 problems" in said("verify", code=1)
    assert len(said("verify", "--json", code=1)["problems"]) == 1


def test_a_missing_store_says_how_to_make_one(said: Any, home: Path) -> None:
    message = said("list", "--store", home / "nowhere", code=2)
    assert "there is no store at" in message
    assert "brickwork store add FOLDER" in message
    assert not (home / "nowhere").exists()


def test_a_bricks_words_cannot_steer_the_terminal(said: Any, home: Path) -> None:
    evil = Function(text="\x1b[2J[red]\x9b31m gone[/red]", exemplars=("\x1b]0;title\x07",))
    with Store.open(home / "store") as store:
        store.add(small_brick("evil", function=evil, licence="\x1b[31m"))
    for words in (("list",), ("show", "evil"), ("search", "gone")):
        out = said(*words)
        assert not any(sign in out for sign in "\x1b\x9b\x07")
        assert "[red]" in out


def test_listing_and_searching_load_no_torch(home: Path) -> None:
    program = """
import sys
from brickwork.cli.main import main
for words in (["list"], ["show", "fr-en"], ["search", "french"], ["tag", "fr-en", "seen"]):
    assert main(["store", *words]) == 0
    assert main(["store", *words, "--json"]) == 0
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.DEVNULL)
