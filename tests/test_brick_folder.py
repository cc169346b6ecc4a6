"""A brick's folder: byte for byte, all or nothing, and every change is noticed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import torch as safetensors

from brickwork.brick import files
from brickwork.brick.brick import Brick
from brickwork.brick.folder import (
    brick_files,
    is_brick_folder,
    is_peft_folder,
    read_brick,
    write_brick,
)
from brickwork.brick.forms import find_form
from brickwork.errors import BrickFormatError, BrickworkError
from tests.bricks import FORMS, paper_base, random_brick

BASE = paper_base()
every_form = pytest.mark.parametrize("form", FORMS)


def brick(form: str, seed: int = 0, **kw: Any) -> Brick:
    return random_brick(form, BASE, torch.Generator().manual_seed(seed), **kw)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit(folder: Path, change: Callable[[dict[str, Any]], Any], name: str = "brick.json") -> None:
    document = json.loads((folder / name).read_text())
    change(document)
    (folder / name).write_text(json.dumps(document))


@pytest.fixture(params=FORMS)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    write_brick(brick(request.param), tmp_path / "brick")
    return tmp_path / "brick"


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_round_trip_keeps_every_byte(form: str, dtype: torch.dtype, tmp_path: Path) -> None:
    one = brick(form, dtype=dtype, licence="apache-2.0 \N{COPYRIGHT SIGN}")
    write_brick(one, tmp_path / "first")
    again = read_brick(tmp_path / "first")
    write_brick(again, tmp_path / "second")
    assert again == one
    assert again.spec == one.spec
    assert list(again.by_site) == list(one.by_site)
    for name, tensor in one.tensors.items():
        assert again.tensors[name].dtype == dtype
        assert torch.equal(again.tensors[name], tensor)
    assert content(tmp_path / "first") == content(tmp_path / "second")


@every_form
def test_equal_bricks_give_equal_files_whatever_the_order_of_their_tensors(form: str) -> None:
    one = brick(form)
    turned = Brick(one.spec, dict(reversed(one.tensors.items())))
    assert brick_files(turned) == brick_files(one)


@pytest.mark.parametrize("form", [name for name in FORMS if not find_form(name).check])
def test_negative_zero_and_the_smallest_numbers_survive(form: str, tmp_path: Path) -> None:
    one = brick(form)
    tiny = {name: torch.full_like(t, 1e-45).neg() * 0.5 for name, t in one.tensors.items()}
    write_brick(Brick(one.spec, tiny), tmp_path / "brick")
    assert read_brick(tmp_path / "brick") == Brick(one.spec, tiny)
    assert all(t.signbit().all() for t in read_brick(tmp_path / "brick").tensors.values())


def test_tensors_that_share_memory_are_written_one_by_one(tmp_path: Path) -> None:
    vector = torch.randn(8, generator=torch.Generator().manual_seed(0))
    spec = brick("steering", sites=["model.layers.0", "model.layers.1"]).spec
    one = Brick(spec, {f"{site}/vector": vector for site in spec.sites})
    write_brick(one, tmp_path / "brick")
    assert read_brick(tmp_path / "brick") == one


def test_the_folder_holds_what_its_docstring_says(written: Path) -> None:
    form = json.loads((written / "brick.json").read_text())["form"]
    theirs = {"adapter_config.json", "adapter_model.safetensors"}
    own = theirs if find_form(form).peft else {"tensors.safetensors"}
    assert set(content(written)) == {"brick.json"} | own
    assert is_brick_folder(written)
    assert is_peft_folder(written) == bool(find_form(form).peft)


def test_permissions_follow_the_users_mask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        write_brick(brick("lora"), tmp_path / "private")
    finally:
        os.umask(before)
    write_brick(brick("lora"), tmp_path / "usual")
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("private", "usual")]
    assert modes == [0o700, 0o777 & ~before]


def test_refuses_to_write_what_is_not_well_formed(tmp_path: Path) -> None:
    one = brick("bias")
    with pytest.raises(BrickFormatError, match="is not well formed"):
        write_brick(Brick(one.spec, {}), tmp_path / "brick")
    assert list(tmp_path.iterdir()) == []


def test_refuses_to_write_a_description_that_could_not_be_read(tmp_path: Path) -> None:
    long = brick("bias", licence="x" * (9 << 20))
    with pytest.raises(BrickFormatError, match="more than the 8,388,608 that a description may"):
        write_brick(long, tmp_path / "brick")
    assert list(tmp_path.iterdir()) == []


def test_replaces_a_brick_only_if_asked(written: Path) -> None:
    old, other = content(written), brick("lora", seed=7)
    with pytest.raises(BrickFormatError, match="exists; choose another folder or ask to replace"):
        write_brick(other, written)
    assert content(written) == old
    write_brick(other, written, replace=True)
    assert read_brick(written) == other
    assert [path.name for path in written.parent.iterdir()] == ["brick"]


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_never_replaces_what_is_no_brick(kind: str, tmp_path: Path) -> None:
    place = tmp_path / "thesis"
    if kind == "folder":
        place.mkdir()
        (place / "thesis.tex").write_text("years of work")
    elif kind == "file":
        place.write_text("years of work")
    else:
        place.symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BrickFormatError, match="holds no brick, so it is not replaced"):
        write_brick(brick("lora"), place, replace=True)
    assert sorted(tmp_path.rglob("*")) == before


def test_makes_the_folders_above(tmp_path: Path) -> None:
    write_brick(brick("lora"), tmp_path / "a" / "b" / "brick")
    assert read_brick(tmp_path / "a" / "b" / "brick") == brick("lora")


STEPS = ["mkdir", "open", "write", "fsync", "rename"]


class _Trip:
    """Lets a system call pass a number of times, then fails once."""

    def __init__(self, real: Callable[..., Any], passes: int, error: BaseException) -> None:
        self.real, self.passes, self.error = real, passes, error

    def __call__(self, *args: Any, **kw: Any) -> Any:
        self.passes -= 1
        if self.passes == -1:
            raise self.error
        return self.real(*args, **kw)


def _break(patch: pytest.MonkeyPatch, step: str, passes: int, error: BaseException) -> _Trip:
    if step == "fsync":
        trip = _Trip(os.fsync, passes, error)
        patch.setattr(files.os, "fsync", trip)
    elif step == "write":
        trip = _Trip(files._write_durably, passes, error)
        patch.setattr(files, "_write_durably", trip)
    else:
        trip = _Trip(getattr(Path, step), passes, error)

        def method(self: Path, *args: Any, **kw: Any) -> Any:
            return trip(self, *args, **kw)

        patch.setattr(Path, step, method)
    return trip


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", STEPS)
def test_an_interrupted_write_leaves_the_old_brick_or_the_new_one(
    step: str, error: BaseException, there: bool, tmp_path: Path
) -> None:
    place, old, new = tmp_path / "brick", brick("lora"), brick("lora", seed=7)
    interrupted = 0
    for passes in range(20):
        if there:
            write_brick(old, place, replace=True)
        elif place.exists():
            for path in [*place.iterdir()]:
                path.unlink()
            place.rmdir()
        with pytest.MonkeyPatch.context() as patch:
            trip = _break(patch, step, passes, error)
            try:
                write_brick(new, place, replace=there)
            except type(error):
                interrupted += 1
        assert [path.name for path in tmp_path.iterdir()] in (["brick"], [] if not there else None)
        assert not place.exists() or read_brick(place) in ((old, new) if there else (new,))
        if trip.passes >= 0:
            break
    assert interrupted > 0
    assert trip.passes >= 0


def test_the_old_brick_survives_even_if_it_cannot_be_put_back(tmp_path: Path) -> None:
    place = tmp_path / "brick"
    write_brick(brick("lora"), place)
    real, calls = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) > 1:
            raise OSError("the disk is gone")
        return real(self, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "rename", rename)
        with pytest.raises(OSError, match="the disk is gone"):
            write_brick(brick("lora", seed=7), place, replace=True)
    (workshop,) = tmp_path.iterdir()
    assert read_brick(workshop / "old") == brick("lora")


def test_files_and_folders_are_made_durable_before_the_brick_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_sync, real_rename = os.fsync, Path.rename

    def sync(handle: int) -> None:
        events.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        real_sync(handle)

    def rename(self: Path, target: Path) -> Path:
        events.append("rename")
        return real_rename(self, target)

    monkeypatch.setattr(files.os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    write_brick(brick("bias"), tmp_path / "brick")
    assert events == ["brick.json", "tensors.safetensors", "new", "rename", tmp_path.name]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "other"), ("licence", "mit"), ("origin", "emergent"), ("options", {"alpha": 3}),
        ("metrics", [{"name": "loss", "after": 1}]), ("sites", []), ("form", "laro"),
        ("base", {"architecture": "a", "shapes": "s", "weights": "w"}), ("hash", "0" * 64),
        ("hash", 3), ("peft", {"peft_type": "LORA"}),
    ],
)  # fmt: skip
def test_a_changed_description_is_noticed(field: str, value: Any, written: Path) -> None:
    edit(written, lambda document: document.update({field: value}))
    with pytest.raises(BrickworkError):
        read_brick(written)


def test_a_changed_weight_is_noticed(written: Path) -> None:
    path = next(written.glob("*.safetensors"))
    tensors = safetensors.load_file(path)
    first = tensors[max(tensors)].view(-1)[:1]
    first.copy_(1 - first)  # a mask's other value, too
    safetensors.save_file(tensors, path)
    with pytest.raises(BrickFormatError, match=r"has changed since it was written \(hash"):
        read_brick(written)


def test_a_field_nobody_knows_is_refused(written: Path) -> None:
    edit(written, lambda document: document.update(colour="red"))
    with pytest.raises(BrickFormatError, match="colour: Extra inputs are not permitted"):
        read_brick(written)


def test_without_its_hash_a_folder_can_be_changed_on_purpose(written: Path) -> None:
    edit(written, lambda document: (document.pop("hash"), document.update(licence="mit")))
    assert read_brick(written).spec.licence == "mit"


@pytest.mark.parametrize("value", [0, 2, "1", 1.0, True, None, [1]])
def test_refuses_another_format(value: Any, written: Path) -> None:
    edit(written, lambda document: document.update(format=value))
    with pytest.raises(BrickFormatError, match=r"is of format .*; this version reads 1"):
        read_brick(written)


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("lora_alpha", 9, "contradict each other"),
        ("use_rslora", True, "contradict each other"),
        ("alpha_pattern", {"q_proj": 2, "mlp.up_proj": 3}, "contradict each other"),
        ("r", 77, "says rank"),
        ("use_dora", True, "use_dora"),
        ("target_modules", ["embed_tokens"], "does not target"),
        ("peft_type", "IA3", ""),
        ("peft_type", "VERA", "a PEFT adapter of type 'VERA' is not supported"),
        ("rank_pattern", [], "rank_pattern"),
        ("lora_alpha", "x", "lora_alpha: Input should be a valid number"),
        ("target_modules", {}, "target_modules"),
        ("layers_to_transform", [55], ""),
    ],
)
def test_brick_and_adapter_must_tell_the_same(
    field: str, value: Any, reason: str, tmp_path: Path
) -> None:
    sites = [
        f"model.layers.{i}.{name}" for i in (0, 1) for name in ("self_attn.q_proj", "mlp.up_proj")
    ]
    spec = brick("lora", sites=sites).spec
    sizes = {"q_proj": 8, "up_proj": 24}
    tensors = {f"{s}/A": torch.randn(3, 8) for s in sites}
    tensors |= {f"{s}/B": torch.randn(sizes[s.rpartition(".")[2]], 3) for s in sites}
    write_brick(Brick(spec, tensors), tmp_path / "brick")

    def change(document: dict[str, Any]) -> None:
        if field == "layers_to_transform":
            document["target_modules"] = ["q_proj", "up_proj"]
        document[field] = value

    edit(tmp_path / "brick", change, "adapter_config.json")
    with pytest.raises(BrickFormatError) as refusal:
        read_brick(tmp_path / "brick")
    assert reason in str(refusal.value)


def test_a_brick_keeps_the_alphas_of_its_sites(tmp_path: Path) -> None:
    sites = ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"]
    for alphas in ({sites[0]: 3.5}, {sites[0]: 8, sites[1]: 2}, dict.fromkeys(sites, 8.0)):
        options = {"alpha": 8, "rslora": True, "alphas": alphas}
        one = brick("lora", sites=sites, options=options)
        write_brick(one, tmp_path / "brick", replace=True)
        assert read_brick(tmp_path / "brick") == one
