"""What every group of settings has in common."""

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Strict and frozen: an unknown key or a wrong type is an error, never a guess.

    A group of settings may stand at several places and in several documents. What its validators
    raise is an `InputError` whose field is relative to where the validator stands: a setting of
    the group, or "" for the group as a whole, and in a validator of one field for that field.
    `rayward.cluster.config.faults` puts the place in front.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
