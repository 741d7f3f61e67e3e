"""Every bad config ends in one error that names the field and the remedy."""

import pytest

from configs.loading import load_config
from tasks.errors import ConfigError

PRESET = "digits-staircase"
BAD = [
    ("aggregaton.name=rbla", r"aggregaton: there is no such field; did you mean 'aggregation'"),
    ("aggregation.nam=rbla", r"aggregation\.nam: there is no such field; did you mean 'name'"),
    ("data.partition.alfa=1", r"data\.partition\.alfa: there is no such field; did you mean 'alpha'"),
    ("aggregation.name=rbal", r"aggregation\.name: aggregator 'rbal': unknown name; expected one of .*rbla"),
    ("data.partition.name=stairs", r"partition 'stairs': unknown name; expected one of .*staircase"),
    ("ranks.max_rank=0", r"ranks\.max_rank: .*greater than or equal to 1"),
    ("ranks.client_fractions=[0.5, 0.0]", r"ranks\.client_fractions\.1: .*greater than or equal to 0\.001"),
    ("ranks.client_fractions=[]", r"ranks\.client_fractions: .*at least 1 item"),
    ("cohort.quorum=11", r"cohort\.quorum: 11 is above the 10 clients invited; lower it"),
    ("cohort.cohort_size=4", r"cohort\.quorum: 8 is above the 4 clients invited"),
    ("aggregation.name=fedavg", r"aggregation\.name: fedavg needs equal ranks.*use rbla, or one fraction"),
    ("aggregation.robust=median", r"aggregation\.robust: robust rule 'median': unknown name; expected one of .*none"),
    ("aggregation.options=[energy]", r"aggregation\.options\.0: .*valid dictionary or instance of MethodOption"),
    ("aggregation.options={energy: 0.9}", r"aggregation\.options: .*valid list"),
    ("aggregation.options=[{name: energy}]", r"aggregation\.options\.0\.value: .*required"),
    ("aggregation.clusters.decay=1.0", r"aggregation\.clusters\.decay: .*less than or equal to 0\.99"),
    ("training.personal.fusion=mean", r"training\.personal\.fusion: .*'cat', 'svd' or 'factors'"),
    ("aggregation.weighting=ranked", r"aggregation\.weighting: .*set training\.validation_frac above 0"),
    ("data.source=hub", r"data\.location: source hub needs a file, a folder or a hub id"),
    ("data.source=idx", r"data\.location: source idx needs a file"),
    ("model.kind=causal_lm", r"model\.kind causal_lm reads text"),
    ("model.kind=image_classification", r"model\.location: .*needs a hub id or a local folder"),
    ("data.partition.name=natural", r"data\.partition\.column: .*names the clients"),
    ("data.partition.num_clients=0", r"data\.partition\.num_clients: .*give a number"),
    ("evaluation.metric=perplexity", r"evaluation\.metric: perplexity does not exist for mlp; use accuracy"),
    ("name=Digits", r"name: .*pattern"),
    ("publishing.model_name=a/b", r"model_name may not hold '/' or ':'"),
    ("rounds=ten", r"rounds: .*valid integer"),
    ("training.optimizer.learning_rate=-1", r"learning_rate: .*greater than or equal to"),
]


@pytest.mark.parametrize(("override", "message"), BAD, ids=[override for override, _ in BAD])
def test_bad_override_names_field_and_remedy(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(PRESET, [override])
    assert caught.value.exit_code == 2


def test_all_problems_are_named_at_once():
    with pytest.raises(ConfigError, match=r"2 problems\n  - ranks\.max_rank.*\n  - training\.epochs"):
        load_config(PRESET, ["ranks.max_rank=0", "training.epochs=0"])


@pytest.mark.parametrize("override", ["rounds", "=3", "a..b=1", "rounds.x=3", "rounds=[1"])
def test_malformed_override_is_refused(override):
    with pytest.raises(ConfigError, match="--set"):
        load_config(PRESET, [override])


def test_missing_file_lists_the_presets():
    with pytest.raises(ConfigError, match=r"no such file or preset; expected .*digits-staircase"):
        load_config("digits-stairs.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [", "just words", "\x00"])
def test_a_file_that_is_no_config_is_refused(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf8")
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load_config(str(path))


def test_override_reaches_nested_fields_and_keeps_the_rest():
    config = load_config(PRESET, ["data.partition.num_clients=12", "rounds=2"])
    assert (config.data.partition.num_clients, config.data.partition.name, config.rounds) == (12, "staircase", 2)
