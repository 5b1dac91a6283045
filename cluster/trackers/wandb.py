"""Weights & Biases as a tracker: the config is the recipe, metrics are STAGE/NAME.

W&B has one step for a whole run, which only grows, so each stage brings an axis of its own,
STAGE/step, and its metrics are drawn over that.
"""

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import wandb
from wandb.sdk.mailbox import HandleAbandonedError, MailboxClosedError

from rayward.cluster.config.recipe import Recipe
from rayward.cluster.config.tracking import WandbSettings
from rayward.cluster.errors import InputError
from rayward.cluster.progress import announce
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.trackers.interface import (
    EndState,
    MetricRow,
    TrackerError,
    known_run,
    remember_run,
)

# Beside W&B's own errors, what is raised when its process has died.
_FAILURES = (wandb.Error, OSError, HandleAbandonedError, MailboxClosedError)
_TIMEOUT_S = 30.0
# For what has not been uploaded when the run ends; it stays in the run directory.
_UPLOAD_S = 60.0


class WandbTracker:
    """A run at W&B, or in ROOT/wandb of the run directory for `wandb sync ROOT/wandb`.

    W&B's own process uploads in the background, keeps everything in ROOT/wandb until then, and
    tries again while the server is away. Of the output, the code and git it gets nothing.

    Raises:
        InputError: online and there is no API key, or the server does not answer or refuses.
    """

    name = "wandb"

    def __init__(self, settings: WandbSettings, recipe: Recipe, run: RunDirectory) -> None:
        online = settings.mode == "online"
        target = f"{settings.entity or ''}/{settings.project}"
        run_id = known_run(run, self.name, target) or uuid.uuid4().hex[:8]
        remember_run(run, self.name, target, run_id)
        self._stages: set[str] = set()
        # Weave, where it is installed, would send prompts and answers too.
        os.environ.setdefault("WANDB_DISABLE_WEAVE", "true")
        try:
            # Asked by itself, because wandb.init would wait for somebody to type a key.
            if online and not wandb.login(prompt=False):
                expected = "an API key in WANDB_API_KEY or from `wandb login`, or mode: offline"
                raise InputError("tracking.wandb", "no API key", expected)
            self._run = wandb.init(
                id=run_id,
                # Offline there is nobody to ask; `wandb sync` joins what has one id.
                resume="allow" if online else None,
                mode=settings.mode,
                project=settings.project,
                entity=settings.entity,
                name=recipe.name,
                dir=run.root,
                config={
                    **recipe.model_dump(mode="json", exclude={"tracking"}),
                    "code": run.manifest()["code"],
                },
                allow_val_change=True,
                settings=wandb.Settings(
                    console="off",
                    disable_git=True,
                    disable_code=True,
                    silent=True,
                    init_timeout=_TIMEOUT_S,
                    finish_timeout=_UPLOAD_S,
                    finish_timeout_raises=True,
                ),
            )
        except _FAILURES as error:
            where = f"{target.lstrip('/')} ({settings.mode})"
            raise InputError(
                "tracking.wandb", where, f"W&B that answers ({_line(error)})"
            ) from error
        announce(f"wandb: run {run_id} " + (f"at {self._run.url}" if online else "offline"))

    def log(self, row: MetricRow) -> None:
        """Take the numbers of one step; a second time they are a second point at that step."""
        axis = f"{row.stage}/step"
        values = {f"{row.stage}/{name}": value for name, value in row.values.items()}
        with _told():
            if row.stage not in self._stages:
                self._run.define_metric(axis, hidden=True)
                self._run.define_metric(f"{row.stage}/*", step_metric=axis)
                self._stages.add(row.stage)
            self._run.log({**values, axis: row.step})

    def finish(self, state: EndState, headline: Mapping[str, float]) -> None:
        """Take the results and the state into the run's summary, and wait for the upload."""
        with _told():
            self._run.summary.update({**headline, "state": state})
            # W&B knows success and failure only.
            self._run.finish(exit_code=0 if state == "succeeded" else 1)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except _FAILURES as error:
        raise TrackerError(_line(error)) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
