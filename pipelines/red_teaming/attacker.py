"""A language model that rewrites prompts by attack vector, for red teaming."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rayward.actors.sampling.policy_session import PolicySession
from rayward.actors.text.chat import encode_prompt
from rayward.cluster.config.ppo import PPOSettings, SamplingSettings
from rayward.cluster.config.red_teaming import AttackerSettings
from rayward.cluster.sampler import Sampler
from rayward.cluster.types import AttackVector, Message, Question
from rayward.pipelines.data.rows import make_prompt
from rayward.pipelines.red_teaming.templates import AttackTemplates

_SOURCE = "red_teaming"


class Attacker:
    """Asks a model to rewrite prompts.

    Args:
        session: with the attacking model; the caller releases it.
        sampling: how rewrites are drawn.
        templates: hold the instruction for each attack vector.
    """

    def __init__(
        self, session: Sampler, sampling: SamplingSettings, templates: AttackTemplates
    ) -> None:
        self._session = session
        self._sampling = sampling
        self._templates = templates

    def rewrite(
        self, wanted: Sequence[tuple[str, AttackVector]], seeds: Sequence[int]
    ) -> list[str | None]:
        """Have users' messages rewritten.

        Args:
            wanted: N messages, and the vector to rewrite each by.
            seeds: N, of the answers.

        Returns:
            N texts without white space around them, empty where the model said nothing; None
            where the instruction is longer than `sampling.max_prompt_tokens`.
        """
        questions: list[Question] = []
        rewritten: list[str | None] = [None] * len(wanted)
        indices: list[int] = []
        for index, (text, vector) in enumerate(wanted):
            instruction = Message("user", self._templates.instruction(text, vector))
            prompt = make_prompt([instruction], _SOURCE, adversarial=True, attack_vector=vector)
            token_ids = encode_prompt(self._session.tokenizer, prompt.messages)
            if len(token_ids) <= self._sampling.max_prompt_tokens:
                questions.append(Question(prompt, token_ids, seeds[index]))
                indices.append(index)
        answers = self._session.ask(questions, self._sampling)
        for index, answer in zip(indices, answers.texts, strict=True):
            rewritten[index] = answer.strip()
        return rewritten


@contextmanager
def open_attacker(
    settings: AttackerSettings, ppo: PPOSettings, templates: AttackTemplates, seed: int
) -> Iterator[Attacker]:
    """Start the attacking model in vLLM, and end it afterwards.

    Args:
        settings: the model, and how it runs.
        ppo: the run's; says how long a phase may take.
        templates: hold the instructions.
        seed: of the engine.
    """
    room = settings.sampling.max_prompt_tokens + settings.sampling.max_response_tokens
    field = "red_teaming.attacker.path"
    with PolicySession(settings.path, _own(settings, ppo), {}, room, seed, field) as session:
        yield Attacker(session, settings.sampling, templates)


def _own(settings: AttackerSettings, ppo: PPOSettings) -> PPOSettings:
    return ppo.model_copy(update={"rollout": settings.rollout})
