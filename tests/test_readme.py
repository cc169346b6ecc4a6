"""Every block of the README and of the guide runs, in order, one folder for each file.

A command block (``console`` or ``sh``) may call ``brickwork``; ``make`` lines are left out, as
they are what runs the tests. A ``yaml`` block is the file that its first line names; JSON has no
comments, so a ``json`` block is the file named behind the word: ```` ```json facts.jsonl ````.
Output that is shown as a JSON object must have the keys of the real one. A block that cannot run
says why: ```` ```sh no-run: needs a network ````.
"""

import json
import os
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs" / "guide").glob("*.md"))]
FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)(?P<info>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
COMMANDS = ("console", "sh")
JSON_FILE = re.compile(r"[\w-]+\.jsonl?")
SECONDS = 300
# They take minutes each, and so run with the slow tests: pytest -m slow tests/test_readme.py
LONG = ("analysis.md", "part-of-a-model.md")


@dataclass(frozen=True)
class Block:
    line: int
    language: str
    info: str
    body: str

    @property
    def runs(self) -> bool:
        return not self.info.startswith("no-run")


@dataclass(frozen=True)
class Call:
    command: str
    shown: str


def blocks(text: str) -> list[Block]:
    """The blocks that this file is about: commands, Python, and files in YAML or JSON."""
    return [
        Block(
            line=text.count("\n", 0, match.start()) + 1,
            language=match["language"],
            info=match["info"].strip(),
            body=textwrap.dedent(match["body"]),
        )
        for match in FENCE.finditer(text)
        if match["language"] in (*COMMANDS, "python", "yaml")
        or (match["language"] == "json" and JSON_FILE.fullmatch(match["info"].strip()))
    ]


def calls(block: Block) -> list[Call]:
    """The commands of a block, each with the output shown below it.

    In a ``console`` block a command follows ``$``, and all else is output; an ``sh`` block holds
    commands only. A backslash at the end of a line goes on in the next.
    """
    lines = block.body.replace("\\\n", " ").splitlines()
    if block.language == "sh":
        written = [line.strip().removeprefix("$ ") for line in lines]
        return [Call(line, "") for line in written if line and not line.startswith("#")]
    starts = [number for number, line in enumerate(lines) if line.startswith("$ ")]
    ends = [*starts[1:], len(lines)]
    return [
        Call(lines[start][2:], "\n".join(lines[start + 1 : end]))
        for start, end in zip(starts, ends, strict=True)
    ]


def keys_shown(text: str) -> set[str] | None:
    """The keys of the JSON object that a document shows, None if it shows something else."""
    try:
        document = json.loads(text)
    except json.JSONDecodeError:
        return None
    return set(document) if isinstance(document, dict) else None


def file_named(block: Block, where: str) -> str:
    """The file that a block is the content of: of YAML as its first line says."""
    if block.language == "json":
        return block.info
    match = re.match(r"# ([\w-]+\.yaml)\n", block.body)
    assert match, f"{where}: a block of YAML begins with a comment that names its file: # x.yaml"
    return match[1]


def run_call(call: Call, folder: Path, where: str) -> None:
    program = call.command.split()[0]
    if program == "make":
        return
    assert program == "brickwork", (
        f"{where}: {call.command!r} is neither brickwork nor make, so it is not run; "
        "mark its block no-run and say why"
    )
    # A person's command has all cores; one thread is for the tests' own tiny models, and for
    # commands beside another worker, where threads wait for each other.
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    everyday = {k: v for k, v in os.environ.items() if not (alone and k == "OMP_NUM_THREADS")}
    result = subprocess.run(
        ["bash", "-o", "pipefail", "-c", call.command],
        cwd=folder, env=everyday, capture_output=True, text=True, check=False, timeout=SECONDS,
    )  # fmt: skip
    assert result.returncode == 0, f"{where}: {call.command}\n{result.stdout}\n{result.stderr}"
    keys = keys_shown(call.shown)
    if keys is not None:
        missing = keys - set(json.loads(result.stdout))
        assert not missing, f"{where}: {call.command} has no {sorted(missing)}"


def run_document(text: str, folder: Path, name: str) -> int:
    """Run the blocks in order, Python in one namespace, and return how many there were."""
    names: dict[str, Any] = {"__name__": "__main__"}
    running = [block for block in blocks(text) if block.runs]
    for block in running:
        where = f"{name}:{block.line}"
        if block.language == "python":
            exec(compile(block.body, where, "exec"), names)  # noqa: S102
        elif block.language in ("yaml", "json"):
            (folder / file_named(block, where)).write_text(block.body, encoding="utf-8")
        else:
            for call in calls(block):
                run_call(call, folder, where)
    return len(running)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a store of its own and no way to the network."""
    folder = tmp_path / "work"
    folder.mkdir()
    scripts = Path(sys.executable).parent
    monkeypatch.chdir(folder)
    monkeypatch.setenv("BRICKWORK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PATH", f"{scripts}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.mark.parametrize(
    "path",
    [pytest.param(d, marks=pytest.mark.slow) if d.name in LONG else d for d in DOCUMENTS],
    ids=lambda path: path.name,
)
def test_every_block_runs(path: Path, elsewhere: Path) -> None:
    run_document(path.read_text(), elsewhere, path.name)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_block_that_does_not_run_says_why(path: Path) -> None:
    for block in blocks(path.read_text()):
        assert block.runs or re.match(r"no-run: \S", block.info), (
            f"{path.name}:{block.line} is marked no-run without a reason; "
            "write it after a colon: no-run: needs a network"
        )


def test_blocks_run_in_order_and_share_their_names(elsewhere: Path) -> None:
    text = """
```python
count = 1
```

```text
not for us
```

- a list

  ```python
  count += 1
  assert count == 2
  from pathlib import Path
  Path("made.txt").touch()
  ```

```sh
make test
$ brickwork --version
brickwork \\
  --help | grep demo
```

```sh no-run: needs a network
brickwork nonsense
```

```yaml
# made.yaml
a: 1
```

```json made.jsonl
{"a": 1}
```

```json
{"shown": "and no file"}
```

```console
$ brickwork --version
brickwork, version 0.0.0
```
"""
    assert run_document(text, elsewhere, "here") == 6
    assert (elsewhere / "made.jsonl").read_text("utf-8") == '{"a": 1}\n'
    assert (elsewhere / "made.txt").exists()
    assert (elsewhere / "made.yaml").read_text("utf-8") == "# made.yaml\na: 1\n"


def test_shown_json_needs_the_keys_of_the_real_one() -> None:
    call = calls(Block(1, "console", "", '$ brickwork run x --json\n{"answer": "a",\n "plan": []}'))
    assert keys_shown(call[0].shown) == {"answer", "plan"}
    assert keys_shown("an answer") is None


@pytest.mark.parametrize(
    ("command", "message"),
    [("brickwork nonsense", "No such command 'nonsense'"), ("curl x", "mark its block no-run")],
)
def test_a_block_that_fails_is_reported_with_its_place(
    command: str, message: str, elsewhere: Path
) -> None:
    with pytest.raises(AssertionError, match=message) as failure:
        run_document(f"\n```sh\n{command}\n```\n", elsewhere, "guide.md")
    assert "guide.md:2" in str(failure.value)
