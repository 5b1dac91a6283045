"""Settings of experiment trackers. TensorBoard events are always written to the run directory."""

from typing import Literal

from pydantic import Field

from cluster.config.base import Settings


class MLflowSettings(Settings):
    """MLflow, through its own library (the extra `mlflow`)."""

    tracking_uri: str | None = None
    """Where MLflow keeps runs; null: what MLFLOW_TRACKING_URI says."""
    experiment: str = Field(default="rayward", min_length=1)
    """The experiment that the run belongs to."""


class WandbSettings(Settings):
    """Weights & Biases, through its own library (the extra `wandb`)."""

    project: str = Field(default="rayward", min_length=1)
    """The project that the run belongs to."""
    entity: str | None = None
    """User or team; null: the account's default."""
    mode: Literal["online", "offline"] = "online"
    """offline keeps the run in the run directory, for `wandb sync` later."""


class TrackingSettings(Settings):
    """Which trackers get a run's metrics, beside metrics.jsonl and TensorBoard."""

    mlflow: MLflowSettings | None = None
    """MLflow; null leaves it out."""
    wandb: WandbSettings | None = None
    """Weights & Biases; null leaves it out."""
