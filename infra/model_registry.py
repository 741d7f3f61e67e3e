"""Versions of global adapters in MLflow's model registry, and the names that move between them.

What lives here: publishing an adapter as a version, finding it again, aliases. What does not: when a champion
changes (the promotion flow), how a version predicts (`serving`).
A version is a PEFT directory and `base.json`, which names the base model; the base itself is never copied.
"""

import getpass
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.mlflow_connection import connect, reaching
from infra.model_bundle import adapter_digest, build_model
from infra.tracking import RUN_TAG
from tasks.errors import ObjectConflictError, RegistryError
from tasks.rounds.keys import GLOBAL

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as MlflowVersion

CANDIDATE = "candidate"
CHALLENGER = "challenger"
CHAMPION = "champion"

ROUND_TAG = "rankweave.round"
SHA256_TAG = "adapter_sha256"
PARENT_TAG = "rankweave.parent_version"
CROWNED_BY_TAG = "rankweave.crowned_by"
CROWNED_WHY_TAG = "rankweave.crowned_because"


def registered_name(name: str, model: str) -> str:
    """Return the registry's name of one of a run's models: each cluster is a registered model of its own.

    Args:
        name: The experiment's model name.
        model: The model's name in the run's records.
    """
    return name if model == GLOBAL else f"{name}-{model}"


@dataclass(frozen=True)
class ModelVersion:
    """One published global adapter.

    Args:
        name: Registered model.
        version: MLflow's number.
        round_index: Round that made it.
        adapter_sha256: Digest of `adapter_model.safetensors`, as `sha256sum` prints it.
        uri: What `mlflow.pyfunc.load_model` takes.
    """

    name: str
    version: int
    round_index: int
    adapter_sha256: str
    uri: str


@dataclass(frozen=True)
class ModelRegistry:
    """MLflow's model registry, as far as adapters need it.

    Args:
        client: Connected MLflow client.
        tracking_uri: Where MLflow is.
    """

    client: "MlflowClient"
    tracking_uri: str

    def publish(  # noqa: PLR0913 - the parts of a version; each is named at the call
        self,
        name: str,
        *,
        mlflow_run_id: str,
        round_index: int,
        adapter_files: Mapping[str, bytes],
        base_spec: Mapping[str, object],
        base_digest: str,
        tags: Mapping[str, str],
    ) -> ModelVersion:
        """Store an adapter with its run and register it as the next version; again is a no-op.

        Args:
            name: Registered model; created if missing.
            mlflow_run_id: MLflow's id of the run that made the adapter.
            round_index: Round that made it.
            adapter_files: The PEFT directory: file name -> content.
            base_spec: Fields of `BaseModelSpec`: the base by reference.
            base_digest: Digest of the base's weights; serving refuses any other base.
            tags: Further tags: aggregator, ranks, ... Run, round and digest are added, and as parent the
                version that this run published before, unless the tags name one.

        Returns:
            The new version, or the one that this run, round and adapter have already.

        Raises:
            AdapterFormatError: The files are not those of a PEFT directory.
            ObjectConflictError: This run and round have a version already, with another adapter.
            RegistryError: MLflow refuses.
            RegistryUnavailableError: MLflow does not answer.
        """
        sha256 = adapter_digest(adapter_files)
        with self._doing(f"publishing {name}, round {round_index}"):
            run = self.client.get_run(mlflow_run_id)
            run_id = _our_run_id(run.data.tags, tags, mlflow_run_id)
            existing = self._find(name, run_id=run_id, round_index=round_index)
            if existing is not None:
                return _same_adapter(existing, sha256)
            folder = f"adapters/round-{round_index:03d}"
            with tempfile.TemporaryDirectory(prefix="rankweave-") as scratch:
                model = build_model(Path(scratch), adapter_files, base_spec=base_spec, base_digest=base_digest)
                self.client.log_artifacts(mlflow_run_id, str(model), folder)
            own = {RUN_TAG: run_id, ROUND_TAG: str(round_index), SHA256_TAG: sha256}
            _create_model(self.client, name)
            found = self.client.create_model_version(
                name,
                f"{run.info.artifact_uri}/{folder}",
                mlflow_run_id,
                {**self._parent_tag(name, run_id), **tags, **own},
                await_creation_for=0,  # MLflow's own registry is ready at once; waiting logs a line a round
            )
            return _record(found)

    def version_of(self, name: str, *, run_id: str, round_index: int) -> ModelVersion | None:
        """Find the version that a round published.

        Args:
            name: Registered model.
            run_id: Our id of the federated run.
            round_index: The round.

        Returns:
            The version, or None if the round has none.

        Raises:
            RegistryError: MLflow refuses.
            RegistryUnavailableError: MLflow does not answer.
        """
        with self._doing(f"looking up {name}, run {run_id}, round {round_index}"):
            return self._find(name, run_id=run_id, round_index=round_index)

    def set_alias(self, name: str, alias: str, version: int) -> None:
        """Point an alias at a version; the last writer wins.

        Args:
            name: Registered model.
            alias: CANDIDATE, CHALLENGER, CHAMPION or a name of your own.
            version: MLflow's number.

        Raises:
            RegistryError: There is no such version, or MLflow refuses.
            RegistryUnavailableError: MLflow does not answer.
        """
        with self._doing(f"setting {name}@{alias} to version {version}"):
            self.client.set_registered_model_alias(name, alias, str(version))

    def alias(self, name: str, alias: str) -> int | None:
        """Return the version an alias points at.

        Args:
            name: Registered model.
            alias: The alias.

        Returns:
            MLflow's number, or None if there is no such alias or model.

        Raises:
            RegistryError: MLflow refuses.
            RegistryUnavailableError: MLflow does not answer.
        """
        from mlflow.exceptions import MlflowException

        with self._doing(f"reading {name}@{alias}"):
            try:
                return int(self.client.get_model_version_by_alias(name, alias).version)
            except MlflowException as error:
                if _says_absent(error):
                    return None
                raise

    def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias; one that is not there is no error.

        Args:
            name: Registered model.
            alias: The alias.

        Raises:
            RegistryError: MLflow refuses.
            RegistryUnavailableError: MLflow does not answer.
        """
        if self.alias(name, alias) is None:
            return
        with self._doing(f"removing {name}@{alias}"):
            self.client.delete_registered_model_alias(name, alias)

    def crown_first(self, name: str, version: int, reason: str) -> bool:
        """Make a version the champion if there is none yet, and note on the version who did it and why.

        MLflow's aliases know no compare-and-set, so the alias is read again after the write: of two
        servers that crown at once, the one whose write was lost learns it, unless the other writes after that
        reading.

        Args:
            name: Registered model.
            version: MLflow's number.
            reason: Why it may serve.

        Returns:
            Whether this version is the champion now; also true when the same call is made again.

        Raises:
            RegistryError: There is no such version, or MLflow refuses.
            RegistryUnavailableError: MLflow does not answer.
        """
        if self.alias(name, CHAMPION) is None:
            self.set_alias(name, CHAMPION, version)
        if self.alias(name, CHAMPION) != version:
            return False
        with self._doing(f"tagging {name}, version {version}"):
            known = self.client.get_model_version(name, str(version)).tags
            if CROWNED_WHY_TAG not in known:
                self.client.set_model_version_tag(name, str(version), CROWNED_BY_TAG, _who())
                self.client.set_model_version_tag(name, str(version), CROWNED_WHY_TAG, reason)
        return True

    def _find(self, name: str, *, run_id: str, round_index: int) -> ModelVersion | None:
        found = self.client.search_model_versions(
            f"name = '{name}' and tags.`{RUN_TAG}` = '{run_id}' and tags.`{ROUND_TAG}` = '{round_index}'",
            max_results=1,
            order_by=["version_number ASC"],
        )
        return _record(found[0]) if found else None

    def _parent_tag(self, name: str, run_id: str) -> dict[str, str]:
        found = self.client.search_model_versions(
            f"name = '{name}' and tags.`{RUN_TAG}` = '{run_id}'",
            max_results=1,
            order_by=["version_number DESC"],
        )
        return {PARENT_TAG: str(found[0].version)} if found else {}

    def _doing(self, what: str) -> "AbstractContextManager[None]":
        return reaching(self.tracking_uri, what)


def open_registry(tracking_uri: str) -> ModelRegistry:
    """Open MLflow's model registry.

    Args:
        tracking_uri: Where MLflow is: `sqlite:///path`, `http://host:port`, `postgresql://...`.

    Returns:
        The registry.

    Raises:
        RegistryError: The address is none that MLflow knows, or the database cannot be used.
        RegistryUnavailableError: The database server does not answer.
    """
    return ModelRegistry(connect(tracking_uri), tracking_uri)


def _our_run_id(run_tags: Mapping[str, str], tags: Mapping[str, str], mlflow_run_id: str) -> str:
    run_id = run_tags.get(RUN_TAG) or tags.get(RUN_TAG)
    if not run_id:
        raise RegistryError(
            f"MLflow run {mlflow_run_id}",
            f"has no tag {RUN_TAG}, so its versions could not be found again",
            remedy="open the run with open_tracker, or pass the tag",
        )
    return run_id


def _same_adapter(existing: ModelVersion, sha256: str) -> ModelVersion:
    if existing.adapter_sha256 != sha256:
        raise ObjectConflictError(
            f"{existing.name}, round {existing.round_index}",
            f"is published already as version {existing.version}, with another adapter",
            got=f"sha256 {sha256}",
            expected=f"sha256 {existing.adapter_sha256}",
            remedy="start a new run; a published version is never changed",
        )
    return existing


def _create_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _record(found: "MlflowVersion") -> ModelVersion:
    return ModelVersion(
        name=found.name,
        version=int(found.version),
        round_index=int(found.tags[ROUND_TAG]),
        adapter_sha256=found.tags[SHA256_TAG],
        uri=f"models:/{found.name}/{found.version}",
    )


def _says_absent(error: Exception) -> bool:
    # MLflow answers "not found" for a missing model, and "invalid parameter" for a missing alias.
    code = getattr(error, "error_code", "")
    missing_alias = code == "INVALID_PARAMETER_VALUE" and "not found" in str(error)
    return code == "RESOURCE_DOES_NOT_EXIST" or missing_alias


def _who() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        # A container's user id need not have a name.
        return "unknown"
