"""The PPO learner on several ranks learns what one rank learns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from safetensors.torch import load_file

from actors.learner import Learner
from cluster.config.ppo import PPOSettings
from cluster.types import Experience, Message, Prompt, Rollout, ScoredRollout
from tests.tiny import write_tiny_llama

BATCH = 14  # of uneven lengths, and not a multiple of the ranks in every microbatch


def experiences(version: int) -> list[Experience]:
    draw = np.random.default_rng(version)
    prompt = Prompt("p", (Message("user", "ask"),), None, None, False, False, "test")
    result = []
    for index in range(BATCH):
        start, length = 3 + index % 4, 1 + (7 * index) % 11

        def floats(length: int = length) -> np.ndarray:
            return draw.normal(size=length).astype(np.float32)

        rollout = Rollout(
            prompt=prompt,
            sample_index=0,
            policy_version=version,
            token_ids=draw.integers(0, 250, size=start + length),
            response_start=start,
            sampler_logprobs=floats(),
            finish_reason="stop",
        )
        scored = ScoredRollout(
            rollout, -5.5 + 0.1 * floats(), floats(), 0.1 * floats(), 0.0, 0.0, "safety", 0.0
        )
        result.append(Experience(scored, floats(), floats(), floats()))
    return result


class Group:
    """Ranks of one learner, started."""

    def __init__(self, role: str, model: Path, ranks: int, zero_stage: int) -> None:
        own = {
            "deepspeed": {"ranks": ranks, "zero_stage": zero_stage},
            "optimizer": {"learning_rate": 1e-3},
            "max_tokens_per_microbatch": 40,
        }
        settings = PPOSettings.model_validate({"batch_size": BATCH, "minibatch_size": 7, role: own})
        actor: Any = ray.remote(Learner)
        self.ranks = [
            actor.options(num_cpus=0, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}}).remote(
                role=role, path=str(model), settings=settings, rank=rank, seed=0
            )
            for rank in range(ranks)
        ]

    def join(self) -> list[Any]:
        meeting = ray.get(self.ranks[0].rendezvous.remote())
        return [rank.join.remote(*meeting) for rank in self.ranks]

    def call(self, method: str, *arguments: object) -> list[Any]:
        return ray.get([getattr(rank, method).remote(*arguments) for rank in self.ranks])


KINDS = [
    ("policy", 1, 0),
    ("policy", 2, 3),
    ("critic", 1, 0),
    ("critic", 2, 3),
]
"""Role, ranks and ZeRO stage; the stages between are tested with the supervised loop."""


@pytest.mark.slow
def test_two_ranks_learn_what_one_does(ray_session: None, tmp_path: Path) -> None:
    model = write_tiny_llama(tmp_path / "model")
    # All at the same time: most of it is waiting for processes to start.
    groups = {kind: Group(kind[0], model, *kind[1:]) for kind in KINDS}
    ray.get([call for group in groups.values() for call in group.join()])
    metrics, scores, weights = {}, {}, {}
    for kind, group in groups.items():
        metrics[kind] = [group.call("update", experiences(v), v)[0] for v in range(3)]
        rollouts = [one.scored.rollout for one in experiences(9)]
        shares = group.call("score", rollouts)
        scores[kind] = {index: own for share in shares for index, own in share.items()}
        group.call("export", tmp_path / f"{kind}")
        weights[kind] = load_file(tmp_path / f"{kind}" / "model.safetensors")
        for rank in group.ranks:
            ray.kill(rank)
    for role in ("policy", "critic"):
        alone, split = (role, 1, 0), (role, 2, 3)
        for one, other in zip(metrics[alone], metrics[split], strict=True):
            for name, value in one.items():
                # Whether a clip binds is yes or no: one of 79 tokens may stand on the edge.
                tolerance = 1.5 / 79 if "clipfrac" in name else 1e-4
                assert other[name] == pytest.approx(value, abs=tolerance)
        assert sorted(scores[split]) == list(range(BATCH))
        for index, own in scores[alone].items():
            assert scores[split][index] == pytest.approx(own, abs=1e-4)
        assert weights[split].keys() == weights[alone].keys()
        for name, tensor in weights[alone].items():
            assert weights[split][name].numpy() == pytest.approx(tensor.numpy(), abs=1e-4)
        assert metrics[alone][0] != metrics[alone][2]
