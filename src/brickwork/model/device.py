"""Where a model computes, and in which number format."""

from collections.abc import Mapping
from typing import Literal

import torch

from brickwork.errors import ModelError

DTYPES: Mapping[str, torch.dtype | Literal["auto"]] = {
    "auto": "auto",
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def find_device(device: str) -> torch.device:
    """The device of that name; ``auto`` is ``cuda`` where there is one, else ``cpu``.

    Raises:
        ModelError: if there is no such device, or it does not work here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
        torch.empty(1, device=target).tolist()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(
            f"the device {device!r} cannot be used here ({reason}); try 'auto' or 'cpu'."
        ) from None
    return target


def find_dtype(dtype: str) -> torch.dtype | Literal["auto"]:
    """The number format of that name; ``auto``, the checkpoint's own, is left as it is.

    Raises:
        ModelError: if it is not one of ``DTYPES``.
    """
    if dtype not in DTYPES:
        raise ModelError(f"the dtype {dtype!r} is not one of {', '.join(DTYPES)}.")
    return DTYPES[dtype]
