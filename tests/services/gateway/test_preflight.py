"""Models that cannot be served are named before anything starts."""

from pathlib import Path

import pytest

from rayward.cluster.config.load import parse_serving
from rayward.cluster.config.serving import ServedRewardModel
from rayward.cluster.errors import InputError
from rayward.services.gateway.preflight import check
from rayward.services.rewards.server import RewardServer
from tests.serving import write_models


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def refused(document: dict[str, object]) -> str:
    with pytest.raises(InputError) as caught:
        check(parse_serving(document))
    return caught.value.field


def test_models_of_the_right_kind_pass(models: Path) -> None:
    reward = {axis: {"path": str(models / axis)} for axis in ("safety", "helpfulness")}
    check(parse_serving({"policy": {"path": str(models / "policy")}, "reward": reward}))


def test_models_of_the_wrong_kind_are_refused(models: Path) -> None:
    policy, safety = str(models / "policy"), str(models / "safety")
    assert refused({"policy": {"path": safety}}) == "policy.path"
    assert refused({"reward": {"safety": {"path": policy}}}) == "reward.safety.path"
    assert refused({"reward": {"helpfulness": {"path": "./none"}}}) == "reward.helpfulness.path"
    own = {"path": str(models / "helpfulness")}
    assert refused({"reward": {"helpfulness": own, "policy": "./none"}}) == "reward.policy"


def test_a_replica_names_whose_answers_it_cannot_read(models: Path) -> None:
    model = ServedRewardModel(path=str(models / "safety"))
    with pytest.raises(InputError) as caught:
        RewardServer("safety", model, "./none", deterministic=False)
    assert caught.value.field == "reward.policy"


def test_an_adapter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert refused({"policy": {"path": str(tmp_path)}}) == "policy.path"
