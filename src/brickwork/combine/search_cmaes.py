"""optuna's CMA-ES, which keeps its state pickled in the journal, without trust in that journal."""

import io
import pickle
from collections.abc import Sequence
from typing import Any

from optuna.samplers import CmaEsSampler
from optuna.trial import FrozenTrial

from brickwork.errors import ConfigurationError

# All that the state of a strategy is made of; none of it runs what it is given.
_KNOWN = {
    ("cmaes._cma", "CMA"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
}


class CarefulCmaEs(CmaEsSampler):
    """As its parent, but a state that holds anything besides numbers is refused."""

    def _restore_optimizer(self, completed_trials: Sequence[FrozenTrial]) -> Any:
        for trial in reversed(completed_trials):
            attributes = trial.system_attrs.items()
            parts = {k: v for k, v in attributes if k.startswith(self._attr_key_optimizer)}
            if parts:
                return _read(self._concat_optimizer_attrs(parts))
        return None


def _read(state: str) -> Any:
    try:
        return _Numbers(io.BytesIO(bytes.fromhex(state))).load()
    except (ValueError, LookupError, TypeError, AttributeError, EOFError, pickle.PickleError) as e:
        raise ConfigurationError(
            f"the journal of the search should hold the state of CMA-ES, but it cannot be read "
            f"({type(e).__name__}: {e}); search in another folder."
        ) from None


class _Numbers(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise ConfigurationError(
                f"the journal of the search should hold the state of CMA-ES, but that names "
                f"{module}.{name}; do not go on with this folder, search in another."
            )
        return super().find_class(module, name)
