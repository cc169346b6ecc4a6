"""A small study of a tiny model: three functionalities that even random neurons can tell apart."""

import random
import string
from pathlib import Path
from typing import Any

from brickwork.measure.instances import Instance
from brickwork.measure.results import Settings
from brickwork.measure.study import Study, open_study
from tests.served import loaded

LETTERS = {"Coding": "abcdefgh", "Math": string.digits, "Writing": string.ascii_uppercase}
SETTINGS: dict[str, Any] = {
    "share": 0.1, "evaluation": 4, "permutations": 4, "resamples": 50, "seed": 0
}  # fmt: skip


def labelled(per_function: int = 60, seed: int = 0) -> list[Instance]:
    """Prompts and responses from letters of their own, from two sources each."""
    chance = random.Random(seed)

    def text(letters: str, most: int) -> str:
        return "".join(chance.choice(letters) for _ in range(chance.randint(2, most)))

    return [
        Instance(name, text(letters, 12), text(letters, 5), f"{name}-{n}", f"task{n % 2}",
                 f"source{n % 2}")
        for name, letters in LETTERS.items()
        for n in range(per_function)
    ]  # fmt: skip


def small_study(folder: Path, family: str = "llama", **settings: Any) -> Study:
    """The study, not yet begun."""
    return open_study(
        loaded(family), labelled(), Settings(**{**SETTINGS, **settings}), folder, name="letters"
    )
