"""What is served, how, and to whom: the document of `rayward serve`."""

from typing import Self

from pydantic import Field, model_validator

from rayward.cluster.config.base import Settings
from rayward.cluster.config.mixes import MixSettings, PiecewiseMixSettings
from rayward.cluster.config.roles import Precision, Resources, RewardRole
from rayward.cluster.errors import InputError

_PAPER_GATE = 0.15  # Llama 2, section 3.4.3


class HttpSettings(Settings):
    """The one HTTP port."""

    host: str = "127.0.0.1"
    """The address to listen on. Any but this machine's own needs keys."""
    port: int = Field(default=8000, ge=1, le=65535)
    """The port to listen on."""
    request_timeout_s: float = Field(default=60.0, gt=0)
    """A request that takes longer is answered with 503. No client can change it."""
    generation_timeout_s: float = Field(default=600.0, gt=0)
    """The same for requests to the policy."""
    max_body_bytes: int = Field(default=4 * 1024 * 1024, ge=1024)
    """Longer request bodies are answered with 413."""
    max_requests_in_work: int = Field(default=512, ge=1)
    """Requests beyond so many at a time are answered with 503."""
    max_event_streams: int = Field(default=128, ge=1)
    """The same for streams of jobs' events, which last as long as the jobs."""
    retry_after_s: int = Field(default=1, ge=1)
    """What a 503 says in Retry-After."""


class KeySettings(Settings):
    """Who may ask."""

    path: str | None = None
    """The file that `rayward keys create` writes; read again when it changes. Null: no key is asked
    for, and only this machine may ask."""
    requests_per_minute: int = Field(default=6000, ge=1)
    """What a key may ask that has no rate of its own."""


class ServedRewardModel(RewardRole):
    """A reward model behind HTTP."""

    path: str
    """A transformers directory or hub id."""
    resources: Resources = Resources(threads=2)
    """What each replica asks of Ray; a request that is alone gets all its threads."""
    replicas: int = Field(default=1, ge=1)
    """How many processes share the requests."""
    max_tokens_per_batch: int = Field(default=1024, ge=1)
    """Tokens of the items that are scored together, at most (a longer item goes alone)."""
    max_queued_items: int = Field(default=1024, ge=1)
    """Items that wait for one replica, at most; requests beyond are answered with 503."""


class RewardServiceSettings(Settings):
    """Reward scoring: one or both of the models, and how their scores become one reward."""

    safety: ServedRewardModel | None = None
    """The safety reward model."""
    helpfulness: ServedRewardModel | None = None
    """The helpfulness reward model."""
    policy: str | None = None
    """Whose answers are scored: a reward model that speaks this policy's tokens reads them as in
    training. Null: every reward model writes conversations with its own chat template."""
    mix: MixSettings = PiecewiseMixSettings()
    """How two scores become one reward."""
    safety_gate: float | None = Field(default=None, gt=0, lt=1)
    """Answers whose probability of being safe is below this are under the gate. Null: the
    threshold of the piecewise mix, 0.15 for other mixes."""
    max_items: int = Field(default=256, ge=1)
    """Items in one request, at most."""
    deterministic: bool = False
    """Equal bits for equal items whatever they are scored with, also where a request does not
    ask for it. Costs a lone request the time of eight. Models on GPUs, and those in bfloat16, are
    so whatever this says: there the company would change more of a score than its last bits."""

    @model_validator(mode="after")
    def _something_scores(self) -> Self:
        if self.safety is None and self.helpfulness is None:
            raise InputError("safety", None, "a reward model, here or as helpfulness")
        return self

    @property
    def gate(self) -> float:
        """The probability of being safe below which an answer is under the gate."""
        if self.safety_gate is not None:
            return self.safety_gate
        return self.mix.threshold if isinstance(self.mix, PiecewiseMixSettings) else _PAPER_GATE


class GuardSettings(Settings):
    """Guarded generation: of several answers the best by the reward mix, none of them unsafe."""

    best_of: int = Field(default=1, ge=1)
    """Answers drawn for each that is given."""
    safety_floor: float | None = Field(default=None, gt=0, lt=1)
    """An answer whose probability of being safe is below this is replaced by the refusal."""
    refusal: str = Field(default="I can't help with that.", min_length=1)
    """What is answered instead."""

    @property
    def is_on(self) -> bool:
        """Whether answers must be scored before they are given."""
        return self.best_of > 1 or self.safety_floor is not None


class PolicyServiceSettings(Settings):
    """The policy, in vLLM behind an OpenAI-compatible API."""

    path: str
    """A transformers directory or hub id with a chat template."""
    precision: Precision = "float32"
    """The dtype of the weights."""
    max_model_len: int | None = Field(default=None, ge=2)
    """Longest prompt plus answer, in tokens. Null: what the model was made for."""
    seed: int | None = Field(default=None, ge=0, lt=2**31)
    """What answers to requests without a seed are drawn from. Null: drawn anew by every engine at
    its start, so that replicas differ, and answers after a restart."""
    replicas: int = Field(default=1, ge=1)
    """How many vLLM engines share the requests."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """GPUs that one engine splits its weights over."""
    max_num_seqs: int = Field(default=64, ge=1)
    """Sequences that one engine runs at the same time, at most."""
    max_choices: int = Field(default=16, ge=1)
    """The most answers that one request may have drawn."""
    max_queued_requests: int = Field(default=128, ge=1)
    """Requests that wait for an engine, at most; those beyond are answered with 503."""
    enforce_eager: bool = True
    """Run vLLM without compilation: it starts sooner and suits small models."""
    kv_cache_gib: int = Field(default=1, ge=1)
    """Key-value cache of a CPU engine, in GiB."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that an engine may take, on GPUs."""
    resources: Resources = Resources()
    """What each engine asks of Ray."""
    guard: GuardSettings = GuardSettings()
    """What every chat answer is held to; a request may ask for more, never for less."""


class JobServiceSettings(Settings):
    """Jobs: recipes that are run for whoever may submit them."""

    runs_root: str = "runs"
    """The folder of the run directories, or a URI (s3://, gs://, file://) that they are copied to
    while they run; the history of jobs is what lies there."""
    max_running: int = Field(default=1, ge=1)
    """Jobs that run at the same time; the others wait, by priority and then by age."""
    max_queued: int = Field(default=1000, ge=1)
    """Jobs that wait, at most; submissions beyond are answered with 503."""
    stop_grace_s: float = Field(default=10.0, gt=0)
    """A cancelled job has so long to write a checkpoint before it is killed."""


class ServingSettings(Settings):
    """What is served, how, and to whom."""

    http: HttpSettings = HttpSettings()
    """The one HTTP port."""
    keys: KeySettings = KeySettings()
    """Who may ask."""
    reward: RewardServiceSettings | None = None
    """Reward scoring; null: not served."""
    policy: PolicyServiceSettings | None = None
    """The policy; null: not served."""
    jobs: JobServiceSettings | None = None
    """Jobs; null: not served."""

    @property
    def longest_request_s(self) -> float:
        """How long a request may be in work: its body comes, its answer is made and scored."""
        generation_s = 0.0 if self.policy is None else self.http.generation_timeout_s
        return generation_s + 2 * self.http.request_timeout_s

    @model_validator(mode="after")
    def _something_is_served(self) -> Self:
        if self.reward is None and self.policy is None and self.jobs is None:
            raise InputError("reward", None, "something to serve: reward, policy or jobs")
        return self

    @model_validator(mode="after")
    def _a_guard_has_its_scores(self) -> Self:
        if self.policy is None:
            return self
        guard, reward = self.policy.guard, self.reward
        if guard.best_of > self.policy.max_choices:
            raise InputError(
                "policy.guard.best_of",
                guard.best_of,
                f"at most max_choices, {self.policy.max_choices}",
            )
        if guard.safety_floor is not None and (reward is None or reward.safety is None):
            raise InputError(
                "policy.guard.safety_floor", guard.safety_floor, "a safety model in reward.safety"
            )
        both = reward is not None and reward.safety is not None and reward.helpfulness is not None
        if guard.best_of > 1 and not both:
            raise InputError(
                "policy.guard.best_of", guard.best_of, "both reward models in reward, to choose by"
            )
        return self
