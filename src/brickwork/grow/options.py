"""What a growth is told, checked when it is read."""

from pydantic import BaseModel, ConfigDict


class Options(BaseModel):
    """The options of one growth; an unknown name is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
