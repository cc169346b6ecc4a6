"""LoRA: ``W x + scaling * B A x`` (Hu et al. 2021, arXiv:2106.09685)."""

import math

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

from brickwork.brick.brick import Brick
from brickwork.brick.effects import Add, Effect
from brickwork.brick.spec import Finite


class LoraOptions(BaseModel):
    """What scales a LoRA: ``alpha / rank``, or ``alpha / sqrt(rank)`` for rsLoRA.

    ``alphas`` holds the sites whose alpha differs.

    >>> options = LoraOptions(alpha=16, alphas={"h.0.q": 4, "h.1.q": 16})
    >>> options.alphas, options.scaling("h.0.q", rank=8), options.scaling("h.1.q", rank=8)
    ({'h.0.q': 4.0}, 0.5, 2.0)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    alpha: Finite
    rslora: bool = False
    alphas: dict[str, Finite] = {}

    @field_validator("alphas")
    @classmethod
    def _exceptions_only(cls, alphas: dict[str, float], info: ValidationInfo) -> dict[str, float]:
        sites = (info.context or {}).get("sites")
        for site in alphas:
            if sites is not None and site not in sites:
                raise ValueError(f"{site!r} is not among the brick's sites")
        return {site: alpha for site, alpha in alphas.items() if alpha != info.data.get("alpha")}

    def scaling(self, site: str, rank: int) -> float:
        """The factor on ``B A x`` at a site."""
        return self.alphas.get(site, self.alpha) / (math.sqrt(rank) if self.rslora else rank)


def effects(brick: Brick) -> list[Effect]:
    """One low-rank term per site; the rank may differ from site to site."""
    options = LoraOptions.model_validate(brick.spec.options)
    return [
        Add(site, slots["A"], slots["B"], options.scaling(site, slots["A"].shape[0]))
        for site, slots in brick.by_site.items()
    ]
