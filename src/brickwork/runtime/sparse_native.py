"""The sparse FFN in C: compiled on this machine at first use, kept in the user's cache.

``BRICKWORK_NATIVE=0`` turns it off, ``BRICKWORK_CACHE`` names another folder, ``CC`` a compiler.
What stands in the way is said by ``native_problem()``; nothing here ends a process that could go
on without.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import platformdirs
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from brickwork.brick.durable import sync_folder
from brickwork.errors import ConfigurationError, UnknownNameError
from brickwork.runtime.kernels import Records

# The numbers are those of sparse_ffn.c.
ACTIVATION_CODES: Mapping[str, int] = {"silu": 0, "gelu": 1, "gelu_tanh": 2, "relu": 3, "relu2": 4}
LEVELS: Mapping[str, int] = {"scalar": 0, "base": 1, "avx2": 2, "avx512": 3, "avx512_bf16": 4}
DTYPES = (torch.float32, torch.bfloat16)

# No fast-math: linked in, it would make the whole process flush its denormals.
FLAGS = ("-O3", "-std=gnu11", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread")
COMPILE_SECONDS = 120
# A thread with less to read than this takes longer to start than to work.
BYTES_PER_THREAD = 1 << 20


class _Job(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in (
            "weights", "gate_bias", "up_bias", "down_bias", "x", "neurons", "keep", "y")),
        *((name, ctypes.c_int64) for name in ("hidden", "chosen", "tokens")),
        *((name, ctypes.c_int32) for name in (
            "gated", "activation", "is_bf16", "level", "threads", "spare")),
    )  # fmt: skip


@dataclass(frozen=True)
class _Loaded:
    """The library, or why there is none."""

    library: ctypes.CDLL | None = None
    problem: str | None = None


class _Unusable(Exception):
    """Why there is no library; caught where it is loaded."""


def native_problem() -> str | None:
    """Why this process has no native kernel; None if it has one. The first call compiles it."""
    return _load().problem


def native_levels() -> list[str]:
    """The instruction sets that this machine can run the kernel with, the best one last."""
    library = _library()
    return [name for name, code in LEVELS.items() if library.brickwork_level_available(code)]


def native_sparse_ffn(
    records: Records,
    x: Float[Tensor, "tokens hidden"],
    neurons: Int[Tensor, " chosen"],
    *,
    keep: Bool[Tensor, "tokens chosen"] | None = None,
    threads: int | None = None,
    level: str | None = None,
) -> Float[Tensor, "tokens hidden"]:
    """As ``sparse_ffn``, by the native kernel; the order of ``neurons`` is not checked.

    Args:
        threads: at most so many work on it; as many as torch uses by default. Equal numbers give
            equal bits.
        level: one of ``native_levels()``; the best one by default.

    Raises:
        ConfigurationError: if the kernel is not there, or cannot read these tensors.
        UnknownNameError: if no level has that name.
    """
    library, used = _library(), level or _best_level()
    if used not in LEVELS:
        raise UnknownNameError("level of the native sparse FFN", used, LEVELS)
    x, neurons = x.detach().contiguous(), neurons.contiguous()
    keep = None if keep is None else keep.contiguous()
    _check(records, x, neurons, keep)
    y = torch.empty_like(x)
    size = records.weights.element_size() * records.weights.shape[1] * len(neurons)
    asked = torch.get_num_threads() if threads is None else threads
    job = _Job(
        weights=records.weights.data_ptr(),
        **{
            name: None if tensor is None else tensor.data_ptr()
            for name, tensor in _optional(records, keep).items()
        },
        x=x.data_ptr(),
        neurons=neurons.data_ptr(),
        y=y.data_ptr(),
        hidden=records.hidden,
        chosen=len(neurons),
        tokens=len(x),
        gated=records.gated,
        activation=ACTIVATION_CODES[records.activation_name or ""],
        is_bf16=x.dtype == torch.bfloat16,
        level=LEVELS[used],
        threads=max(1, min(asked, 1 + size // BYTES_PER_THREAD)),
    )
    status = library.brickwork_sparse_ffn(ctypes.byref(job))
    if status == 1:
        raise MemoryError(f"the native sparse FFN found no memory for {len(x)} tokens")
    if status:
        raise ConfigurationError(
            f"the native sparse FFN was asked for level {used!r}, but this machine has "
            f"{', '.join(native_levels())}; name one of these, or none."
        )
    return y


def misfit(records: Records) -> str | None:
    """Why these records cannot take this path; None if they can."""
    return native_problem() or _unreadable(records)


def _unreadable(records: Records) -> str | None:
    weights = records.weights
    tensors = {"weights": weights, **_biases(records)}
    if weights.device.type != "cpu":
        return f"it reads memory of the CPU, and these weights are on {weights.device}"
    if weights.dtype not in DTYPES:
        return f"it reads float32 and bfloat16, and these weights are {weights.dtype}"
    if records.activation_name not in ACTIVATION_CODES:
        return f"it computes {', '.join(ACTIVATION_CODES)}, and this activation is none of them"
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if tensor.dtype != weights.dtype or tensor.device != weights.device:
            return f"the {name} are {tensor.dtype} on {tensor.device}, unlike the weights"
        if not tensor.is_contiguous():
            return f"the {name} are not contiguous"
    return None


def _optional(records: Records, keep: Tensor | None) -> dict[str, Tensor | None]:
    return {**_biases(records), "keep": keep}


def _biases(records: Records) -> dict[str, Tensor | None]:
    return {
        "gate_bias": records.gate_bias,
        "up_bias": records.up_bias,
        "down_bias": records.down_bias,
    }


def _check(records: Records, x: Tensor, neurons: Tensor, keep: Tensor | None) -> None:
    """Everything that the C code takes for granted."""
    problem = _unreadable(records)
    if problem is None and (x.dtype != records.weights.dtype or x.device.type != "cpu"):
        problem = f"x is {x.dtype} on {x.device}, unlike the weights"
    if problem is None and (neurons.dtype != torch.int64 or neurons.device.type != "cpu"):
        problem = f"the neurons' numbers are {neurons.dtype} on {neurons.device}"
    if problem is None and keep is not None and (keep.dtype != torch.bool or not keep.is_cpu):
        problem = f"the mask is {keep.dtype} on {keep.device}"
    if problem is None:
        problem = _misshapen(records, x, neurons, keep)
    if problem:
        raise ConfigurationError(
            f"the native sparse FFN cannot be used here: {problem}; take path='torch'."
        )


def _misshapen(records: Records, x: Tensor, neurons: Tensor, keep: Tensor | None) -> str | None:
    if x.ndim != 2 or x.shape[1] != records.hidden or neurons.ndim != 1:
        return f"x is of shape {list(x.shape)} and neurons of {list(neurons.shape)}"
    if keep is not None and keep.shape != (len(x), len(neurons)):
        return f"the mask is of shape {list(keep.shape)}"
    parts = 3 if records.gated else 2
    if records.weights.ndim != 2 or records.weights.shape[1] != parts * records.hidden:
        return f"the weights are of shape {list(records.weights.shape)}"
    wanted = {"gate_bias": records.neurons, "up_bias": records.neurons, "down_bias": records.hidden}
    for name, tensor in _biases(records).items():
        if tensor is not None and tensor.shape != (wanted[name],):
            return f"the {name} is of shape {list(tensor.shape)}, not [{wanted[name]}]"
    numbers = neurons.numpy()
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < records.neurons:
        return f"the neurons' numbers reach from {numbers.min()} to {numbers.max()}"
    return None


def _library() -> ctypes.CDLL:
    loaded = _load()
    if loaded.library is None:
        raise ConfigurationError(
            f"the native sparse FFN was asked for, but {loaded.problem}; take path='torch'."
        )
    return loaded.library


@functools.cache
def _best_level() -> str:
    return native_levels()[-1]


@functools.cache
def _load() -> _Loaded:
    try:
        return _Loaded(library=_open(_built()))
    except _Unusable as problem:
        return _Loaded(problem=str(problem))
    except OSError as error:  # a folder that cannot be written, a library that cannot be read
        return _Loaded(problem=f"its library cannot be built or read: {error}")


def _built() -> Path:
    """The library for this source, compiler and machine, compiled if it is not in the cache."""
    if os.environ.get("BRICKWORK_NATIVE") == "0":
        raise _Unusable("BRICKWORK_NATIVE=0 turns it off")
    if os.name != "posix":
        raise _Unusable(f"it is built on POSIX systems only, and this is {os.name}")
    source = (files("brickwork.runtime.kernels") / "sparse_ffn.c").read_bytes()
    compiler = _compiler()
    cache = os.environ.get("BRICKWORK_CACHE") or platformdirs.user_cache_path("brickwork")
    folder = Path(cache).absolute()  # a bare file name would be looked for among the system's
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _refuse_if_others_write(folder)
    library = folder / f"sparse_ffn-{_fingerprint(source, compiler)}.so"
    if not library.exists():
        _compile(source, compiler, library)
    _refuse_if_others_write(library)
    return library


def _compiler() -> list[str]:
    asked = os.environ.get("CC")
    names = [asked] if asked else ["cc", "gcc", "clang"]
    for command in map(_words, names):
        found = shutil.which(command[0]) if command else None
        if found:
            # A link is not followed: ccache is told by its name which compiler it stands for.
            return [str(Path(found).absolute()), *command[1:]]
    raise _Unusable(f"there is no C compiler here (looked for {', '.join(names)})")


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError as error:  # a quotation mark without its pair
        raise _Unusable(f"CC={command!r} is no command: {error}") from None


def _fingerprint(source: bytes, compiler: list[str]) -> str:
    state = Path(compiler[0]).stat()
    parts = [*compiler, state.st_size, state.st_mtime_ns, *FLAGS, platform.system()]
    text = "\0".join(map(str, [*parts, platform.machine(), platform.libc_ver()]))
    return hashlib.sha256(source + text.encode()).hexdigest()[:24]


def _compile(source: bytes, compiler: list[str], library: Path) -> None:
    """Into a folder of its own and then into place at once: others see it whole or not at all."""
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".building-") as place:
        code, made = Path(place) / "sparse_ffn.c", Path(place) / "sparse_ffn.so"
        code.write_bytes(source)
        command = [*compiler, *FLAGS, str(code), "-o", str(made), "-lm"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False
            )
        except subprocess.TimeoutExpired:
            raise _Unusable(f"{compiler[0]} took over {COMPILE_SECONDS} seconds") from None
        if done.returncode or not made.exists():
            said = (done.stderr or done.stdout).strip()[-500:]
            raise _Unusable(f"{compiler[0]} failed with status {done.returncode}: {said}")
        made.chmod(0o700)
        with made.open("rb") as file:
            os.fsync(file.fileno())
        made.replace(library)
        sync_folder(library.parent)


def _refuse_if_others_write(path: Path) -> None:
    """Code is loaded from there: it must be what this user put there."""
    found = path.lstat()
    kind = stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode)
    if not kind or found.st_uid != os.getuid() or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _Unusable(
            f"{path} must be this user's own and not writable by others, but its owner is "
            f"{found.st_uid} and its mode {stat.filemode(found.st_mode)}; mend that or set "
            "BRICKWORK_CACHE to another folder"
        )


def _open(path: Path) -> ctypes.CDLL:
    library = ctypes.CDLL(str(path))
    try:
        library.brickwork_job_size.restype = ctypes.c_int64
        library.brickwork_sparse_ffn.argtypes = [ctypes.POINTER(_Job)]
        library.brickwork_level_available.argtypes = [ctypes.c_int]
    except AttributeError as error:
        raise _Unusable(f"{path} is another library ({error}); remove it") from None
    if library.brickwork_job_size() != ctypes.sizeof(_Job):
        raise _Unusable(f"{path} takes {library.brickwork_job_size()} bytes for a call, and not "
                        f"{ctypes.sizeof(_Job)}")  # fmt: skip
    return library
