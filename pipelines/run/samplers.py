"""The session that is open: one at a time, kept for as long as the next question is to its policy.

An engine takes seconds to start and minutes to load a large model; stages that ask one policy
after another share it. Whoever needs the machines for something else closes it first.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rayward.actors.learning.lora import is_adapter, merge_adapter
from rayward.actors.models.kinds import CAUSAL_LM, load_config, positions
from rayward.actors.sampling.policy_session import PolicySession
from rayward.cluster.config.recipe import Recipe
from rayward.cluster.progress import announce
from rayward.cluster.seeds import stage_seed
from rayward.cluster.types import Axis
from rayward.pipelines.run.data import RunData
from rayward.pipelines.stage import all_stages

_SESSION = "session"


def longest_conversation(recipe: Recipe, data: RunData) -> int:
    """The longest prompt plus answer that any session of the recipe may ask for, in tokens."""
    asked = [one for stage in all_stages(recipe) if (one := stage.sampling(recipe)) is not None]
    longest = max(one.max_prompt_tokens + one.max_response_tokens for one in asked)
    return max(longest, benchmark_room(recipe, data))


def benchmark_room(recipe: Recipe, data: RunData) -> int:
    """The longest question plus answer of the benchmarks that are measured, in tokens."""
    asked = [
        settings.sampling
        for settings, rows in (
            (recipe.evaluation.truthfulqa, data.truthfulqa),
            (recipe.evaluation.toxigen, data.toxigen),
        )
        if settings is not None and rows
    ]
    return max((one.max_prompt_tokens + one.max_response_tokens for one in asked), default=0)


class Sessions:
    """Opens sessions, and closes the one before.

    Args:
        recipe: whose roles are used.
        max_model_len: longest prompt plus answer that any stage may ask, in tokens.
        scratch: a folder on storage that all nodes share, for adapters that are merged.
    """

    def __init__(self, recipe: Recipe, max_model_len: int, scratch: Path) -> None:
        self._recipe = recipe
        self._max_model_len = max_model_len
        self._scratch = scratch
        self._open: tuple[str, dict[Axis, str], PolicySession] | None = None

    def session(self, policy: str, reward_models: Mapping[Axis, str]) -> PolicySession:
        """A session with the policy at `policy` and these reward models, by axis.

        The caller does not release it.
        """
        wanted = policy, dict(reward_models)
        if self._open is not None and self._open[:2] == wanted:
            return self._open[2]
        self.close()
        announce(f"starting samplers and {len(reward_models)} reward models for {policy}")
        model = self._whole(policy)
        room = positions(load_config(model, "model.path", CAUSAL_LM))
        session = PolicySession(
            model,
            self._recipe.ppo,
            reward_models,
            self._max_model_len if room is None else min(self._max_model_len, room),
            stage_seed(self._recipe.seed, _SESSION),
        )
        self._open = (*wanted, session)
        return session

    def close(self) -> None:
        """End the open session, if any, and give its room back."""
        if self._open is not None:
            self._open[2].release()
            self._open = None
        shutil.rmtree(self._scratch, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _whole(self, policy: str) -> str:
        """The policy with its adapter merged, where it is one: samplers hold whole weights."""
        if not is_adapter(policy):
            return policy
        merged = self._scratch / "merged"
        merge_adapter(policy, merged)
        return str(merged)
