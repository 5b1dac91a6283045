"""What the public benchmarks' answers have in common: plain prompts, no reward model, no chat."""

from rayward.cluster.config.ppo import SamplingSettings
from rayward.cluster.records.samples import Sample
from rayward.cluster.sampler import Sampler
from rayward.cluster.types import Message, Prompt, Rollout


def prompt_room(session: Sampler, sampling: SamplingSettings) -> int:
    """The longest prompt that is answered, in tokens: the setting's, and what the model leaves."""
    return min(sampling.max_prompt_tokens, session.max_model_len - sampling.max_response_tokens)


def benchmark_prompt(id: str, text: str, source: str) -> Prompt:
    """A prompt as it is kept with its answer."""
    return Prompt(
        id=id,
        messages=(Message("user", text),),
        risk_category=None,
        attack_vector=None,
        adversarial=False,
        borderline=False,
        source=source,
    )


def benchmark_sample(rollout: Rollout, response: str, verdict: str | None) -> Sample:
    """An answer as it is kept, cut as it was judged."""
    return Sample(
        prompt=rollout.prompt,
        response=response,
        safety=None,
        helpfulness=None,
        decided_by=None,
        safety_weight=None,
        helpfulness_weight=None,
        verdict=verdict,
        step=0,
        policy_version=rollout.policy_version,
        finish_reason=rollout.finish_reason,
    )
