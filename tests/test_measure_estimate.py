"""The estimate: exact about disk, sound about time, and it neither writes nor needs weights."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from brickwork.measure.analysis import analyze_study
from brickwork.measure.estimate import estimate
from brickwork.measure.results import Settings
from brickwork.measure.study import Study, open_study
from brickwork.model.load import wrap_model
from tests.study import SETTINGS, labelled, small_study
from tests.tiny import FAMILIES, tiny_tokenizer


def outlined(family: str, folder: Path) -> Study:
    """The same study on a model without weights."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(FAMILIES[family]())
    loaded = wrap_model(model.eval(), tiny_tokenizer(), "outline")
    return open_study(loaded, labelled(), Settings(**SETTINGS), folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_disk_is_what_the_rows_take(family: str, tmp_path: Path) -> None:
    found = estimate(outlined(family, tmp_path / "outline"))
    assert not (tmp_path / "outline").exists()
    analyze_study(small_study(tmp_path, family), command="x")
    rows = [
        p for f in ("rows", "attributions") for p in (tmp_path / f).glob("*.[0-9][0-9][0-9].npy")
    ]
    assert found.disk == sum(path.stat().st_size - 128 for path in rows)  # numpy's header


def test_every_step_is_rehearsed_and_more_layers_take_more(tmp_path: Path) -> None:
    study = outlined("llama", tmp_path)
    few = estimate(study)
    assert set(few.seconds) == {"collect", "score", "attribute", "mask", "perturb"}
    assert all(seconds > 0 for seconds in few.seconds.values())
    with torch.device("meta"):
        deep = FAMILIES["llama"]()
        deep.num_hidden_layers = 400
        model = AutoModelForCausalLM.from_config(deep)
    loaded = wrap_model(model.eval(), tiny_tokenizer(), "deep")
    many = estimate(open_study(loaded, labelled(), Settings(**SETTINGS), tmp_path))
    assert many.disk == 200 * few.disk
    assert many.memory > few.memory
