"""Settings of experiment trackers. TensorBoard events are always written to the run directory.

No setting holds a secret: trackers take theirs from the environment, as their own programs do.
"""

from typing import Literal

from pydantic import Field, field_validator

from rayward.cluster.config.base import Settings
from rayward.cluster.errors import InputError


class MLflowSettings(Settings):
    """MLflow, through its own library (the extra `mlflow`)."""

    tracking_uri: str | None = None
    """A server's address or a local folder; null: what MLFLOW_TRACKING_URI says."""
    experiment: str = Field(default="rayward", min_length=1)
    """The experiment that the run belongs to; it is made if it is not there."""

    @field_validator("tracking_uri")
    @classmethod
    def _no_secret(cls, uri: str | None) -> str | None:
        if uri is not None:
            refuse_login_in(uri, field="")
        return uri


class WandbSettings(Settings):
    """Weights & Biases, through its own library (the extra `wandb`)."""

    project: str = Field(default="rayward", min_length=1)
    """The project that the run belongs to."""
    entity: str | None = None
    """User or team; null: the account's default."""
    mode: Literal["online", "offline"] = "online"
    """offline keeps the run in the run directory, for `wandb sync` later."""


class TrackingSettings(Settings):
    """Which trackers get a run's metrics, beside metrics.jsonl, TensorBoard and Prometheus."""

    mlflow: MLflowSettings | None = None
    """MLflow; null leaves it out."""
    wandb: WandbSettings | None = None
    """Weights & Biases; null leaves it out."""


def refuse_login_in(uri: str, field: str) -> None:
    """Refuse an address with a user or a password in it: it would end up in files and messages.

    Args:
        uri: the address.
        field: where it comes from, for the error.

    Raises:
        InputError: without the secret.
    """
    scheme, mark, rest = uri.partition("://")
    _, at, place = rest.split("/")[0].rpartition("@")
    if mark and at:
        raise InputError(
            field,
            f"{scheme}://***@{place}",
            "an address without a login, which MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN) hold",
        )
