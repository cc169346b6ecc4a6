"""The frame: what loads when, what the exit codes mean, and that --json means JSON."""

import ast
import json
import os
import resource
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import brickwork
from brickwork.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "transformers", "tokenizers", "peft", "huggingface_hub", "sklearn")

# Commands that a test adds to the table, in a module of their own as real ones are.
FAKES = '''
import os
import signal
import time

import click
from brickwork.errors import BrickworkError
from brickwork.cli.console import emit, progress
from brickwork.cli.options import model_options, output_options

@click.command()
@output_options
def mistaken(as_json):
    raise BrickworkError("asked for 3 bricks, found 2; add one.")

@click.command()
@output_options
def broken(as_json):
    raise ZeroDivisionError("division by zero")

@click.command()
def endless():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits "ignore"
    print("started", flush=True)
    time.sleep(60)

@click.command()
def talkative():
    for _ in range(100_000):
        print("a line that nobody reads")

@click.command()
@model_options
@output_options
def honest(device, dtype, seed, as_json):
    """Say what it was given."""
    print("a library's idle remark")
    with progress("counting", total=3) as advance:
        advance(3)
    document = {"seed": seed, "offline": os.environ.get("HF_HUB_OFFLINE")}
    emit(document, as_json, lambda console: console.print(f"seed {seed} on {device}"))

@click.command()
@output_options
def unsayable(as_json):
    emit({"loss": float("nan")}, as_json, lambda console: None)
'''
PROGRAM = """
import sys
from brickwork.cli import main
for name in sys.argv.pop(1).split(","):
    main.app.add_command(main.LateCommand(name, f"fakes:{name}", f"Be {name}."))
sys.exit(main.main())
"""


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    """The words that start the command with the fakes in its table."""
    names = [node.name for node in ast.parse(FAKES).body if isinstance(node, ast.FunctionDef)]
    (tmp_path / "fakes.py").write_text(FAKES)
    (tmp_path / "program.py").write_text(PROGRAM)
    return [sys.executable, str(tmp_path / "program.py"), ",".join(names)]


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    plain = {k: v for k, v in os.environ.items() if k not in ("BRICKWORK_DEBUG", "HF_HUB_OFFLINE")}
    return subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=120, env=plain | variables
    )


def loaded_after(statement: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after the statement."""
    code = (
        f"import sys\ntry:\n    {statement}\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    result = run(sys.executable, "-c", code)
    assert result.returncode == 0, result.stderr
    return set(result.stderr.split())


def test_importing_brickwork_loads_nothing_heavy() -> None:
    assert loaded_after("import brickwork").isdisjoint({*HEAVY, "pydantic", "click", "rich"})


def test_help_loads_neither_a_command_nor_anything_heavy() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    loaded = loaded_after("from brickwork.cli import main; sys.exit(main.main(['--help']))")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert loaded.isdisjoint({*HEAVY, "pydantic", "rich"})
    print(f"CPU time of brickwork --help: {after.ru_utime - before.ru_utime:.3f} s")


@pytest.mark.parametrize("name", [command.name for command in COMMANDS])
def test_a_commands_help_loads_nothing_heavy(name: str) -> None:
    # This is also what makes --offline work: libraries read HF_HUB_OFFLINE as they load.
    call = f"from brickwork.cli import main; sys.exit(main.main(['{name}', '--help']))"
    assert loaded_after(call).isdisjoint(HEAVY)


@pytest.mark.parametrize("name", brickwork.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(brickwork, name) is getattr(brickwork, name)
    assert name in dir(brickwork)


def test_type_checkers_see_the_names_that_load_late() -> None:
    tree = ast.parse(Path(brickwork.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == brickwork._HOMES
    assert set(brickwork.__all__) == {*seen, "__version__"}


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="'brickwork' has no attribute 'Brik'"):
        _ = brickwork.Brik


@pytest.mark.parametrize("words", [("-m", "brickwork"), ("-c", "import brickwork.__main__")])
def test_the_package_runs_as_a_module_but_not_on_import(words: tuple[str, str]) -> None:
    result = run(sys.executable, *words, *(["--version"] if words[0] == "-m" else []))
    assert result.returncode == 0
    said = f"brickwork, version {version('brickwork')}\n" if words[0] == "-m" else ""
    assert result.stdout == said


def test_the_installed_script_is_the_same_entry_point() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"brickwork": "brickwork.cli.main:main"}


def test_an_unknown_command_exits_2_and_names_the_nearest() -> None:
    result = run(sys.executable, "-m", "brickwork", "stroe")
    assert result.returncode == 2
    assert "Error: No such command 'stroe'. Did you mean 'store'?" in result.stderr
    assert result.stdout == ""


def test_an_unknown_option_exits_2_and_names_the_nearest(program: list[str]) -> None:
    result = run(*program, "honest", "--sed", "3")
    assert result.returncode == 2
    assert "--seed" in result.stderr


def test_the_callers_mistake_exits_2_with_one_message(program: list[str]) -> None:
    result = run(*program, "mistaken")
    assert result.returncode == 2
    assert result.stderr == "Error: asked for 3 bricks, found 2; add one.\n"


@pytest.mark.parametrize(
    ("words", "variables"),
    [(["--debug"], {}), ([], {"BRICKWORK_DEBUG": "1"})],
    ids=["option", "variable"],
)
def test_debug_adds_the_traceback(
    program: list[str], words: list[str], variables: dict[str, str]
) -> None:
    result = run(*program, "mistaken", *words, **variables)
    assert result.returncode == 2
    assert "Traceback (most recent call last)" in result.stderr
    assert result.stderr.endswith("Error: asked for 3 bricks, found 2; add one.\n")


def test_our_failure_exits_1_and_says_how_to_get_the_traceback(program: list[str]) -> None:
    result = run(*program, "broken")
    assert result.returncode == 1
    assert result.stderr.startswith("Error: internal: ZeroDivisionError: division by zero\n")
    assert "--debug" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Traceback" in run(*program, "broken", "--debug").stderr


def test_an_interrupt_exits_130(program: list[str]) -> None:
    process = subprocess.Popen(
        [*program, "endless"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == b"\nInterrupted.\n"


def test_a_reader_that_leaves_ends_the_command_quietly(program: list[str]) -> None:
    process = subprocess.Popen(
        [*program, "talkative"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141
    process.stderr.close()


def test_json_is_all_that_stdout_carries(program: list[str]) -> None:
    result = run(*program, "honest", "--json", "--offline", "--seed", "7")
    assert result.returncode == 0
    assert json.loads(result.stdout) == {"seed": 7, "offline": "1"}
    assert "idle remark" in result.stderr
    assert "counting" not in result.stderr  # nobody watches a pipe


def test_without_json_a_person_reads_the_same_result(program: list[str]) -> None:
    result = run(*program, "honest")
    assert result.returncode == 0
    assert result.stdout == "a library's idle remark\nseed 0 on auto\n"


def test_a_result_that_json_cannot_say_is_our_failure(program: list[str]) -> None:
    result = run(*program, "unsayable", "--json")
    assert result.returncode == 1
    assert result.stdout == ""


def test_the_table_and_its_late_rows_share_one_help(program: list[str]) -> None:
    listed = run(*program, "--help").stdout
    assert all(f"{command.name} " in listed for command in COMMANDS)
    assert "Be honest." in listed
    assert "Say what it was given." in run(*program, "honest", "-h").stdout
