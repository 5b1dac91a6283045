"""MLflow as a tracker: parameters are the recipe, metrics are STAGE/NAME by the stage's step."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

# MLflow sends usage data to its makers unless told otherwise before the import.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.file_utils import local_file_uri_to_path
from mlflow.utils.uri import is_local_uri

from rayward.cluster.config.recipe import Recipe
from rayward.cluster.config.topology import flat_settings, is_topology
from rayward.cluster.config.tracking import MLflowSettings, refuse_login_in
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

_FIELD = "tracking.mlflow.tracking_uri"
_FAILURES = (MlflowException, OSError)
_STATUS = {"succeeded": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
# MLflow's own patience is 120 s eight times over, for each request, and a run would stand still.
_TIMEOUT_S = 10
_RETRIES = 1
# What one request may hold.
_PARAMS = 100
_METRICS = 1000


class MLflowTracker:
    """A run on an MLflow server or in a local folder.

    A folder is what `mlflow ui --backend-store-uri FOLDER` reads, if MLFLOW_ALLOW_FILE_STORE is
    true; a relative one is taken from where the command was started.

    Raises:
        InputError: nothing that MLflow can use answers at the address within half a minute, or a
            run that goes on is not there.
    """

    name = "mlflow"

    def __init__(self, settings: MLflowSettings, recipe: Recipe, run: RunDirectory) -> None:
        uri = _resolve(settings.tracking_uri)
        self._folder = local_file_uri_to_path(uri) if is_local_uri(uri) else None
        # Standard output is the summary's.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(_TIMEOUT_S))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(_RETRIES))
        target = f"{uri} {settings.experiment}"
        known = known_run(run, self.name, target)
        try:
            self._client = MlflowClient(tracking_uri=uri)
            with self._told():
                if known is None:
                    experiment = self._experiment(settings.experiment)
                    created = self._client.create_run(experiment, run_name=recipe.name)
                    self._run_id = created.info.run_id
                    remember_run(run, self.name, target, self._run_id)
                else:
                    self._run_id = known
                    self._client.update_run(known, status="RUNNING")
                self._describe(recipe, run)
        except (*_FAILURES, TrackerError) as error:
            what = "an MLflow that answers" if known is None else f"MLflow, with its run {known}"
            field = _FIELD if settings.tracking_uri else "MLFLOW_TRACKING_URI"
            raise InputError(field, uri, f"{what} ({_line(error)})") from error
        announce(f"mlflow: run {self._run_id} of experiment {settings.experiment} at {uri}")

    def log(self, row: MetricRow) -> None:
        """Take the numbers of one step; a second time they are a second point at that step."""
        at = int(row.time * 1000)
        self._log_metrics(
            [Metric(f"{row.stage}/{name}", v, at, row.step) for name, v in row.values.items()]
        )

    def finish(self, state: EndState, headline: Mapping[str, float]) -> None:
        """Take the results as metrics at step 0, and how the run ended."""
        at = int(time.time() * 1000)
        self._log_metrics([Metric(name, value, at, 0) for name, value in headline.items()])
        with self._told():
            self._client.set_terminated(self._run_id, _STATUS[state])

    def _log_metrics(self, metrics: list[Metric]) -> None:
        with self._told():
            for first in range(0, len(metrics), _METRICS):
                self._client.log_batch(self._run_id, metrics[first : first + _METRICS])

    @contextmanager
    def _told(self) -> Iterator[None]:
        # MLflow would raise a plain Exception, which nobody can tell from a mistake in a program.
        if self._folder is not None and not os.path.isdir(self._folder):
            raise TrackerError(f"the folder {self._folder} is gone")
        try:
            yield
        except _FAILURES as error:
            raise TrackerError(_line(error)) from error

    def _experiment(self, name: str) -> str:
        found = self._client.get_experiment_by_name(name)
        experiment_id: str = (
            self._client.create_experiment(name) if found is None else found.experiment_id
        )
        return experiment_id

    def _describe(self, recipe: Recipe, run: RunDirectory) -> None:
        # Equal settings are no conflict, and a resumed run has no others but for its topology;
        # so whatever a killed process left out is made good.
        params = [
            Param(name, str(value))
            for name, value in flat_settings(recipe).items()
            if not is_topology(name)
        ]
        for first in range(0, len(params), _PARAMS):
            self._client.log_batch(self._run_id, params=params[first : first + _PARAMS])
        code = run.manifest()["code"]
        tags = [RunTag(f"rayward.{name}", str(value)) for name, value in code.items()]
        self._client.log_batch(self._run_id, tags=tags)


def _resolve(setting: str | None) -> str:
    uri = setting or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        expected = "a server's address or a folder, here or in MLFLOW_TRACKING_URI"
        raise InputError(_FIELD, setting, expected)
    refuse_login_in(uri, _FIELD if setting else "MLFLOW_TRACKING_URI")
    if not is_local_uri(uri):
        return uri
    # MLflow would rather have a database than a folder, and asks for this word before it uses
    # one. Who names a folder has said it, and a database would need all of MLflow's server.
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return uri if uri.startswith("file:") else str(Path(uri).expanduser().absolute())


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
