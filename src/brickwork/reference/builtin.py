"""The built-in store: the packaged bricks, put into a store on this machine on first use."""

from pathlib import Path

from brickwork.brick.folder import read_brick
from brickwork.reference.paths import bricks_folder
from brickwork.reference.probe import probe_instances
from brickwork.store.store import Store, default_path


def builtin_store(home: Path | None = None) -> Store:
    """A store with the packaged bricks, beside the user's own; made, or completed, if need be."""
    store = Store.open((home or default_path().parent) / "reference-store")
    present = {(entry.name, entry.hash) for entry in store.list()}
    for folder in sorted(p for p in bricks_folder().iterdir() if p.is_dir()):
        brick = read_brick(folder)
        if (brick.spec.name, brick.hash) not in present:
            store.add(brick, tags=("built-in",))
    return store


def background_instructions(count: int = 140) -> list[str]:
    """Instructions of all functionalities that no built-in brick serves."""
    instances = probe_instances()
    return [i.prompt for i in instances[:: max(1, len(instances) // count)]]
