"""One MLflow run per federated run: parameters, metrics by round, tables, files.

What lives here: writing to one run. What does not: the client itself (`mlflow_connection`), versions and
aliases (`model_registry`), and what is worth writing (the verbs).
Only `MlflowClient` is used, never the fluent functions, which keep their state in the process.
"""

import contextlib
import getpass
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from infra.mlflow_connection import connect, reaching, readable, sqlite_path
from tasks.errors import RegistryError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

RUN_TAG = "rankweave.run_id"
RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

# MLflow's own: tags longer than this are refused, and this tag lists the tables that the UI offers.
_MAX_TAG_LENGTH = 8000
_TABLES_TAG = "mlflow.loggedArtifacts"


@dataclass(frozen=True)
class RunTracker:
    """Writes to one MLflow run; every call may be repeated without harm.

    Args:
        client: Connected MLflow client.
        tracking_uri: Where MLflow is: `sqlite:///path`, `http://host:port`, `postgresql://...`.
        experiment_id: MLflow's id of the experiment.
        mlflow_run_id: MLflow's id of the run.
        run_id: Our id of the federated run.
    """

    client: "MlflowClient"
    tracking_uri: str
    experiment_id: str
    mlflow_run_id: str
    run_id: str

    @property
    def ui_url(self) -> str:
        """Where a person looks: the run's page, or the command that shows a database without a server."""
        if urlsplit(self.tracking_uri).scheme in {"http", "https"}:
            root = readable(self.tracking_uri).rstrip("/")
            # Without the workflow type, MLflow 3 shows the run among evaluations of language models.
            page = f"{root}/#/experiments/{self.experiment_id}/runs/{self.mlflow_run_id}"
            return f"{page}?workflowType=machine_learning"
        return f"mlflow ui --backend-store-uri {readable(self.tracking_uri)}"

    def log_params(self, flat: Mapping[str, object]) -> None:
        """Record what the run was asked to do.

        Args:
            flat: Dotted name -> value; a value longer than MLflow takes is cut and ends in "...".

        Raises:
            RegistryError: MLflow refuses, e.g. because a parameter already has another value.
            RegistryUnavailableError: MLflow does not answer.
        """
        from mlflow.entities import Param
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH

        params = [Param(name, _shorten(value, MAX_PARAM_VAL_LENGTH)) for name, value in sorted(flat.items())]
        with self._writing("parameters"):
            self.client.log_batch(self.mlflow_run_id, params=params)

    def log_round(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record one round's numbers in one request.

        Args:
            step: Round index.
            metrics: Metric name -> value.

        Raises:
            RegistryError: MLflow refuses, e.g. a metric name it does not allow.
            RegistryUnavailableError: MLflow does not answer.
        """
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        batch = [Metric(name, float(value), now_ms, step) for name, value in sorted(metrics.items())]
        with self._writing(f"metrics of round {step}"):
            self.client.log_batch(self.mlflow_run_id, metrics=batch)

    def log_json(self, name: str, obj: object) -> None:
        """Store a value as an indented JSON file, replacing what had this name.

        Args:
            name: File name; ".json" is added if missing.
            obj: Anything JSON can hold.

        Raises:
            RegistryError: MLflow refuses, or the value is none that JSON can hold.
            RegistryUnavailableError: MLflow does not answer.
        """
        try:
            text = json.dumps(obj, indent=2, sort_keys=True)
        except (TypeError, ValueError) as error:
            raise RegistryError(name, "cannot be written as JSON", got=error) from error
        self.log_text(_with_suffix(name, ".json"), text)

    def log_text(self, name: str, text: str) -> None:
        """Store a text file, replacing what had this name.

        Args:
            name: File name, folders separated by "/".
            text: Its content.

        Raises:
            RegistryError: MLflow refuses.
            RegistryUnavailableError: MLflow does not answer.
        """
        with self._writing(name):
            self.client.log_text(self.mlflow_run_id, text, name)

    def log_table(self, name: str, rows: Sequence[Mapping[str, object]]) -> None:
        """Store a table that the UI shows as one, replacing what had this name.

        MLflow's own `log_table` appends to what is there, so that a resumed run would double its rows.

        Args:
            name: File name; ".json" is added if missing.
            rows: Column name -> value, one mapping per row.

        Raises:
            RegistryError: MLflow refuses.
            RegistryUnavailableError: MLflow does not answer.
        """
        import pandas as pd

        name = _with_suffix(name, ".json")
        text = pd.DataFrame(list(rows)).to_json(orient="split", index=False, date_format="iso")
        self.log_text(name, str(text))
        entry = {"path": name, "type": "table"}
        with self._writing(name):
            known = json.loads(self.client.get_run(self.mlflow_run_id).data.tags.get(_TABLES_TAG, "[]"))
            if entry not in known:
                self.client.set_tag(self.mlflow_run_id, _TABLES_TAG, json.dumps([*known, entry]))

    def log_file(self, path: Path, folder: str = "") -> None:
        """Store a copy of a file, replacing what had this name.

        Args:
            path: The file.
            folder: Folder among the run's artifacts; the top by default.

        Raises:
            RegistryError: There is no such file, or MLflow refuses.
            RegistryUnavailableError: MLflow does not answer.
        """
        if not path.is_file():
            raise RegistryError(str(path), "no such file to store with the run")
        with self._writing(path.name):
            self.client.log_artifact(self.mlflow_run_id, str(path), folder or None)

    def log_figure_file(self, path: Path) -> None:
        """Store a copy of a picture among the run's figures.

        Args:
            path: The picture.

        Raises:
            RegistryError: There is no such file, or MLflow refuses.
            RegistryUnavailableError: MLflow does not answer.
        """
        self.log_file(path, folder="figures")

    def set_tags(self, tags: Mapping[str, object]) -> None:
        """Set tags, replacing their values.

        Args:
            tags: Name -> value; a value longer than MLflow takes is cut and ends in "...".

        Raises:
            RegistryError: MLflow refuses.
            RegistryUnavailableError: MLflow does not answer.
        """
        from mlflow.entities import RunTag

        batch = [RunTag(name, _shorten(value, _MAX_TAG_LENGTH)) for name, value in sorted(tags.items())]
        with self._writing("tags"):
            self.client.log_batch(self.mlflow_run_id, tags=batch)

    def finish(self, status: RunStatus) -> None:
        """Say how the run ended.

        Args:
            status: "FINISHED", "FAILED" or "KILLED"; a resumed run becomes running again.

        Raises:
            RegistryError: MLflow refuses.
            RegistryUnavailableError: MLflow does not answer.
        """
        with self._writing(f"status {status}"):
            self.client.set_terminated(self.mlflow_run_id, status=status)

    def _writing(self, what: str) -> contextlib.AbstractContextManager[None]:
        return reaching(self.tracking_uri, f"run {self.run_id}, {what}")


def open_tracker(tracking_uri: str, *, experiment: str, run_id: str) -> RunTracker:
    """Create the MLflow run of a federated run, or adopt the one there is.

    MLflow has no create-if-absent for runs: that one server drives a federated run is for the object store to see
    to. Should two have opened it in the same instant, later openings adopt the older MLflow run.

    Args:
        tracking_uri: Where MLflow is: `sqlite:///path`, `http://host:port`, `postgresql://...`.
        experiment: Name of the experiment; created if missing. With SQLite, its files go into `mlartifacts`
            beside the database.
        run_id: Our id of the federated run; the MLflow run carries it as tag `rankweave.run_id`.

    Returns:
        A tracker of that run, which is now running, also if it had ended before.

    Raises:
        RegistryError: MLflow refuses, e.g. because the experiment is in the trash.
        RegistryUnavailableError: MLflow does not answer; raised within seconds to about a minute.
    """
    client = connect(tracking_uri)
    with reaching(tracking_uri, f"experiment {experiment!r}, run {run_id}"):
        experiment_id = _experiment_id(client, tracking_uri, experiment)
        mlflow_run_id = _adopt(client, experiment_id, run_id) or _create(client, experiment_id, run_id)
    return RunTracker(client, tracking_uri, experiment_id, mlflow_run_id, run_id)


def _experiment_id(client: "MlflowClient", tracking_uri: str, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return _usable(found)
    try:
        return client.create_experiment(name, artifact_location=_artifact_root(tracking_uri))
    except MlflowException as error:
        found = client.get_experiment_by_name(name) if error.error_code == "RESOURCE_ALREADY_EXISTS" else None
        if found is None:
            raise
        return _usable(found)


def _usable(experiment: "Experiment") -> str:
    if experiment.lifecycle_stage != "active":
        raise RegistryError(
            f"experiment {experiment.name!r}",
            "is in MLflow's trash",
            remedy=f"run `mlflow experiments restore -x {experiment.experiment_id}` or choose another name",
        )
    return experiment.experiment_id


def _artifact_root(tracking_uri: str) -> str | None:
    # A server knows where its artifacts go. A bare SQLite file does not: MLflow would use the working folder.
    database = sqlite_path(tracking_uri)
    return None if database is None else (database.parent / "mlartifacts").as_uri()


def _adopt(client: "MlflowClient", experiment_id: str, run_id: str) -> str | None:
    found = client.search_runs(
        [experiment_id],
        f"tags.`{RUN_TAG}` = '{run_id}'",
        max_results=1,
        order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
    )
    if not found:
        return None
    info = found[0].info
    if info.status != "RUNNING":
        client.update_run(info.run_id, status="RUNNING")
    return info.run_id


def _create(client: "MlflowClient", experiment_id: str, run_id: str) -> str:
    tags = {RUN_TAG: run_id, "mlflow.source.name": "rankweave", "mlflow.user": getpass.getuser()}
    return client.create_run(experiment_id, tags=tags, run_name=run_id).info.run_id


def _shorten(value: object, limit: int) -> str:
    text = str(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _with_suffix(name: str, suffix: str) -> str:
    return name if name.endswith(suffix) else name + suffix
