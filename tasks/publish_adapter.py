"""Verb: register a round's global adapter as a model version and point `candidate` at it."""

import json

from prefect import task

from configs.privacy_desk import PrivacyDesk
from configs.workbench import Workbench
from infra.engine import task_options
from infra.model_bundle import WHOLE_PREFIX
from infra.model_registry import CANDIDATE, PARENT_TAG, open_registry, registered_name
from infra.object_store import open_store
from infra.run_store import read_adapter_files
from infra.tracking import open_tracker
from infra.whole_base import whole_folder
from tasks.rounds.records import RoundPlan, RoundRecord
from tasks.rounds.steps import Candidate
from tasks.rounds.summary import RunHandle

WHOLE_TAG = "rankweave.stands_on"
"""What a version's adapter is put on, where that is not the base model itself."""


@task(
    name="publish-adapter",
    task_run_name="publish round {plan.round_index}, {candidate.group.model}",
    **task_options(),
)
def publish_adapter(
    run: RunHandle, plan: RoundPlan, candidate: Candidate, previous: RoundRecord, bench: Workbench
) -> int:
    """Register the candidate, or find the version that an earlier try registered.

    Args:
        run: The run.
        plan: The round's plan.
        candidate: What was aggregated.
        previous: The record before, for the parent version.
        bench: The run's model.

    Returns:
        The version number.

    Raises:
        IntegrityError: The adapter was altered since it was aggregated.
    """
    group = candidate.group
    ranks = {acceptance.client_id: acceptance.rank for acceptance in group.accepted}
    store = open_store(run.store_url)
    files = read_adapter_files(store, run.run_id, candidate.adapter)
    whole = whole_folder(store, candidate.adapter)
    tracker = open_tracker(run.tracking_uri, experiment=run.experiment, run_id=run.run_id)
    registry = open_registry(run.tracking_uri)
    name = registered_name(bench.config.model_name, group.model)
    version = registry.publish(
        name,
        mlflow_run_id=tracker.mlflow_run_id,
        round_index=plan.round_index,
        adapter_files=files | {WHOLE_PREFIX + name: content for name, content in whole.items()},
        base_spec=bench.base_spec_json(),
        base_digest=bench.base.digest,
        tags={
            "aggregator": bench.config.aggregation.name,
            # Whoever may load a version must not read in it whom its noise hides.
            **({} if PrivacyDesk(bench).is_on else {"ranks": json.dumps(ranks)}),
            **({WHOLE_TAG: "the base model with the PEFT folder `whole` merged into it"} if whole else {}),
            PARENT_TAG: str(previous.models[group.parent].version),
        },
    )
    registry.set_alias(name, CANDIDATE, version.version)
    return version.version
