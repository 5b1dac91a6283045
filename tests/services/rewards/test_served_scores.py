"""What is served when a score is no number: an error."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import inf, nan
from typing import Any

import numpy as np
import pytest

from rayward.cluster.config.mixes import WeightedSumMixSettings
from rayward.cluster.config.serving import RewardServiceSettings, ServedRewardModel, ServingSettings
from rayward.cluster.errors import UnscoredError
from rayward.cluster.types import AXES
from rayward.services.http.backends import Backends
from rayward.services.rewards.batches import RewardBatches
from rayward.services.rewards.calls import Item, ItemScore, ModelScores, Written
from rayward.services.rewards.scoring import score_items


class Passes:
    """Stands for a model's forward passes: a sequence's score is what is told of its first id."""

    def __init__(self, scores: Sequence[float]) -> None:
        self._scores = np.array(scores, dtype=np.float32)

    def plan(self, lengths: Sequence[int], fixed: bool, max_tokens: int) -> list[list[int]]:
        return [list(range(len(lengths)))]

    def run(self, sequences: Sequence[Sequence[int]], fixed: bool, threads: int) -> np.ndarray:
        return self._scores[[ids[0] for ids in sequences]]


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_an_item_whose_score_is_no_number_has_none_and_its_neighbour_has_one(bad: float) -> None:
    async def ask() -> list[Any]:
        passes: Any = Passes([1.5, bad])
        with ThreadPoolExecutor(1) as wide:
            batches = RewardBatches("safety", passes, ServedRewardModel(path="m"), wide)
            asked = [batches.score([[index]], fixed=False) for index in (0, 1)]
            return list(await asyncio.gather(*asked, return_exceptions=True))

    good, refused = asyncio.run(ask())
    assert good == [1.5]
    assert isinstance(refused, UnscoredError)
    assert str(refused) == "safety: a score is not finite"


class Says:
    """A deployment's handle that gives every item one score."""

    def __init__(self, logit: float) -> None:
        self.answer = self
        self._logit = logit

    def remote(self, items: Sequence[Item], deterministic: bool) -> asyncio.Future[ModelScores]:
        score = ItemScore(self._logit, tokens=1, truncated=False)
        answer = asyncio.get_running_loop().create_future()
        answer.set_result(ModelScores("v", "t", (score,) * len(items)))
        return answer


def test_a_mix_of_two_scores_that_is_beyond_a_float_is_an_error() -> None:
    settings = ServingSettings(
        reward=RewardServiceSettings(
            safety=ServedRewardModel(path="s"),
            helpfulness=ServedRewardModel(path="h"),
            mix=WeightedSumMixSettings(safety_weight=1.0, helpfulness_weight=1.0),
        )
    )

    def ask(logit: float) -> Any:  # noqa: ANN401
        handles: Any = {axis: Says(logit) for axis in AXES}
        backends = Backends(settings, handles, None, None)
        return asyncio.run(score_items(backends, [Item("items.0", Written("a"))], AXES))

    assert ask(1.0).mixed.score.tolist() == [2.0]
    with np.errstate(over="ignore"), pytest.raises(UnscoredError, match="mixed reward"):
        ask(3e38)
