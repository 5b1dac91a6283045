"""Proximal policy optimisation with two reward models (Llama 2, sections 3.4.3 and 4.2.3).

Who waits for whom in a step:

    prompts -> rollout workers (vLLM)
            -> { policy, critic, reference, safety, helpfulness } in parallel
            -> reward mix -> whitening -> KL -> advantages       (the barrier: a whole batch)
            -> learners (DeepSpeed; policy and critic in parallel)
            -> weight sync -> rollout workers

With GRPO and RLOO there is no critic. With `max_staleness` above 0 the rollout workers go on
sampling while the rest of a step is done (see `rollout_queue`).
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rayward.actors.roles import Roles
from rayward.actors.scoring.mixes import RewardMix, make_mix
from rayward.actors.text.chat import decode_response
from rayward.cluster.atomic import write_bytes
from rayward.cluster.config.ppo import PPOSettings
from rayward.cluster.errors import RunStopped
from rayward.cluster.progress import announce, stage_progress
from rayward.cluster.records.samples import Sample, write_samples
from rayward.cluster.runs.checkpoints import CheckpointStore
from rayward.cluster.runs.run_directory import RunDirectory
from rayward.cluster.trackers.metrics import MetricsWriter
from rayward.cluster.types import Experience
from rayward.pipelines.ppo.early_stop import EarlyStop
from rayward.pipelines.ppo.experience import ExperienceBatch, make_experience, sequence_kl
from rayward.pipelines.ppo.kl_control import KLController
from rayward.pipelines.ppo.prompt_stream import PromptStream
from rayward.pipelines.ppo.rollout_queue import VALIDATION_DRAWS, RolloutQueue
from rayward.pipelines.run.encoding import EncodedPrompt

_STATE = "state.json"


@dataclass(frozen=True)
class PPOResult:
    """What a PPO stage came to."""

    steps: int
    best_step: int  # the step whose weights are the stage's model
    version: int  # the weight version of that model on the rollout workers
    early_stopped: bool
    reference_digest: str


@dataclass
class _State:
    """What a checkpoint holds beside learners and rollouts. All draws come from the step."""

    step: int
    early_stop: EarlyStop | None
    mix: RewardMix
    kl: KLController

    def write(self, path: Path, prompts: dict[str, Any]) -> None:
        document = {
            "step": self.step,
            "early_stop": asdict(self.early_stop.state) if self.early_stop else None,
            "prompts": prompts,
            "mix": self.mix.state(),
            "kl": self.kl.state(),
        }
        write_bytes(str(path), json.dumps(document).encode())

    def restore(self, path: Path) -> dict[str, Any]:
        """Take up a state; returns the prompts' cursor."""
        document = json.loads(path.read_bytes())
        self.step = document["step"]
        self.mix.restore(document["mix"])
        self.kl.restore(document["kl"])
        if self.early_stop:
            self.early_stop.restore(document["early_stop"])
        prompts: dict[str, Any] = document["prompts"]
        return prompts


class PPO:
    """One PPO stage.

    Args:
        name: of the stage, under which everything is kept.
        settings: the stage's settings.
        roles: all roles, started.
        tokenizer: the policy's.
        prompts: training prompts.
        validation: held-out prompts that early stopping measures; none are trained on.
        run: where everything goes.
        metrics: where the numbers go.
        seed: of the run.
        should_stop: asked after every step; true ends the run with a checkpoint.
    """

    def __init__(
        self,
        name: str,
        settings: PPOSettings,
        roles: Roles,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Sequence[EncodedPrompt],
        validation: Sequence[EncodedPrompt],
        run: RunDirectory,
        metrics: MetricsWriter,
        seed: int,
        should_stop: Callable[[], bool],
    ) -> None:
        self._name = name
        self._settings = settings
        self._roles = roles
        self._tokenizer = tokenizer
        self._validation = validation
        self._run = run
        self._metrics = metrics
        self._seed = seed
        self._should_stop = should_stop
        self._store = CheckpointStore(run.checkpoints_dir / self._name, settings.checkpoint.keep)
        early_stop = EarlyStop(settings.early_stop) if settings.early_stop and validation else None
        self._state = _State(0, early_stop, make_mix(settings.mix), KLController(settings.kl))
        self._rollouts = RolloutQueue(roles, PromptStream(prompts, seed), settings, seed)

    @property
    def mix(self) -> RewardMix:
        """The reward mix as it stands."""
        return self._state.mix

    def train(self) -> PPOResult:
        """Run the stage from its newest checkpoint, or from the start, to its end."""
        digest = self._roles.reference_digest()
        self._resume()
        state, settings = self._state, self._settings
        with stage_progress(self._name, total=settings.steps, done=state.step) as advance:
            while state.step < settings.steps and not self._exhausted():
                numbers = self._step()
                advance(
                    1, {"reward": numbers["critic/score/mean"], "kl": numbers["actor/reference_kl"]}
                )
                if self._should_stop():
                    self._checkpoint()
                    raise RunStopped(f"stopped after step {state.step} of {self._name}")
        self._rollouts.drain()
        if self._roles.reference_digest() != digest:
            raise RuntimeError("the reference's weights changed during the run")
        best, version = self._take_best()
        return PPOResult(state.step, best, version, self._exhausted(), digest)

    def _step(self) -> dict[str, float]:
        """Sample, score, learn, sync; then measure and keep."""
        clock = _Clock()
        state, roles, rollouts = self._state, self._roles, self._rollouts
        shards, frozen = rollouts.collect()
        clock.lap("timing/sample")
        scores = roles.score(shards, frozen, rollouts.wait)
        clock.lap("timing/score")
        batch = make_experience(scores, state.mix, self._settings, state.kl.beta, state.step)
        clock.lap("timing/advantages")
        learned = roles.update(batch.experiences, state.step, state.kl.beta, rollouts.wait)
        clock.lap("timing/update")
        state.step += 1
        roles.sync(state.step)
        rollouts.version = state.step
        clock.lap("timing/sync")
        numbers = batch.metrics | learned | state.mix.learn(scores.safety)
        state.kl.observe(batch.sequence_kl, len(batch.experiences))
        if state.early_stop and state.early_stop.due(state.step, self._settings.steps):
            numbers |= self._measure()
            clock.lap("timing/validation")
        tokens = sum(len(rollout.token_ids) for rollout in scores.rollouts)
        numbers |= clock.laps() | {"perf/throughput": tokens / clock.total()}
        self._keep(batch, numbers)
        return numbers

    def _keep(self, batch: ExperienceBatch, numbers: dict[str, float]) -> None:
        """Write down what a step came to."""
        state = self._state
        self._write_samples(batch.experiences)
        self._metrics.log(state.step, self._name, numbers)
        new_best = state.early_stop is not None and state.early_stop.state.best_step == state.step
        if new_best or state.step % self._settings.checkpoint.every == 0:
            self._checkpoint()

    def _measure(self) -> dict[str, float]:
        """The objective on held-out prompts: mean probability of the mixed score, less the KL."""
        state = self._state
        assert state.early_stop is not None
        shards = self._roles.sample(
            [one.prompt for one in self._validation],
            [one.token_ids for one in self._validation],
            self._rollouts.seeds(state.step, VALIDATION_DRAWS, len(self._validation)),
            self._settings.sampling,
            state.step,
        )
        scores = self._roles.score(shards, wait=self._rollouts.wait)
        tagged = [rollout.prompt.adversarial for rollout in scores.rollouts]
        score = state.mix.combine(scores.safety, scores.helpfulness, tagged).score
        reward = float(np.mean(1 / (1 + np.exp(-score.astype(np.float64)))))
        kl = sequence_kl(scores)
        # The first beta, so that measurements compare where it is steered.
        objective = reward - self._settings.kl.beta * kl
        state.early_stop.observe(state.step, objective)
        return {
            "validation/reward": reward,
            "validation/sequence_kl": kl,
            "validation/objective": objective,
        }

    def _exhausted(self) -> bool:
        return self._state.early_stop is not None and self._state.early_stop.exhausted

    def _checkpoint(self) -> None:
        if self._state.step in self._store.complete():
            return
        if self._state.early_stop and self._state.early_stop.state.best_step is not None:
            self._store.keep_also = {self._state.early_stop.state.best_step}
        with self._store.write(self._state.step) as directory:
            self._roles.save(directory)
            self._state.write(directory / _STATE, self._rollouts.save(directory))

    def _resume(self) -> None:
        latest = self._store.latest()
        if latest is None:
            self._metrics.truncate(self._name, after_step=0)
            return
        step, directory = latest
        self._roles.restore(directory)
        self._metrics.truncate(self._name, after_step=step)
        self._roles.sync(step)
        self._rollouts.restore(directory, self._state.restore(directory / _STATE), step)
        announce(f"{self._name}: resumed after step {step}")

    def _take_best(self) -> tuple[int, int]:
        """Go back to the best measured weights, if they are not the last; step and version."""
        state = self._state
        best = state.early_stop.state.best_step if state.early_stop else None
        if best is None or best == state.step:
            return state.step, state.step
        self._roles.restore(self._store.path(best))
        # A version is one set of weights for ever: the best ones come back under a new number.
        self._roles.sync(state.step + 1)
        return best, state.step + 1

    def _write_samples(self, experiences: Sequence[Experience]) -> None:
        rows = [
            Sample(
                prompt=one.scored.rollout.prompt,
                response=decode_response(self._tokenizer, one.scored.rollout.response_ids.tolist()),
                safety=one.scored.safety,
                helpfulness=one.scored.helpfulness,
                decided_by=one.scored.decided_by,
                safety_weight=one.scored.safety_weight,
                helpfulness_weight=one.scored.helpfulness_weight,
                verdict=None,
                step=self._state.step,
                policy_version=one.scored.rollout.policy_version,
                finish_reason=one.scored.rollout.finish_reason,
            )
            for one in experiences
        ]
        write_samples(self._run.step_samples_path(self._name, self._state.step), rows)


class _Clock:
    """Seconds per phase of a step."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """End a phase."""
        now = time.perf_counter()
        self._laps[name] = now - self._last
        self._last = now

    def total(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._start

    def laps(self) -> dict[str, float]:
        """All phases, and `timing/step` for the whole."""
        return {**self._laps, "timing/step": self.total()}
