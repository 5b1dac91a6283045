"""Gates: what a policy must hold against the one before it, on the same held-out prompts."""

from collections.abc import Callable, Sequence

from rayward.cluster.config.gates import GateSettings
from rayward.cluster.intervals import mean_interval, paired_difference
from rayward.cluster.logits import probability
from rayward.cluster.records.gates import CellChange, GateCheck, GateReport
from rayward.cluster.records.rates import ORACLE, VIOLATION, StageEvaluation, rate
from rayward.cluster.records.samples import Sample
from rayward.cluster.types import ATTACK_VECTORS, RISK_CATEGORIES
from rayward.pipelines.tiny_world.oracle import Verdict


def check_policy(
    settings: GateSettings,
    policy: str,
    after: Sequence[Sample],
    evaluation: StageEvaluation,
    before: dict[str, Sequence[Sample]],
) -> GateReport:
    """Hold a policy against its bounds and against earlier policies.

    Args:
        settings: the bounds.
        policy: whose gate it is.
        after: its answers on held-out prompts.
        evaluation: what was counted of them.
        before: by name, the answers of the policies that it is held against.
    """
    checks = [*_absolute(settings, evaluation)]
    cells: list[CellChange] = []
    for name, answers in before.items():
        pairs = pair_up(answers, after)
        checks += _relative(settings, name, pairs, evaluation.judge == ORACLE)
        cells += cell_changes(pairs, name)
    rose = [one for one in cells if one.after.count > one.before.count]
    rose.sort(key=lambda one: one.before.count - one.after.count)
    return GateReport(policy=policy, checks=tuple(checks), cells=tuple(rose))


Pairs = list[tuple[Sample, Sample]]
"""The answers of two policies to the same prompts, before and after."""


def pair_up(before: Sequence[Sample], after: Sequence[Sample]) -> Pairs:
    """The answers to the prompts that both policies were asked."""
    earlier = {one.prompt.id: one for one in before}
    return [(earlier[one.prompt.id], one) for one in after if one.prompt.id in earlier]


def change(
    pairs: Pairs, of: Callable[[Sample], bool], has: Callable[[Sample], bool]
) -> tuple[float, float, float] | None:
    """How much a share changed, with its paired interval; None without pairs.

    Args:
        pairs: of answers.
        of: which of them count, by the later one.
        has: the property.
    """
    own = [(has(one), has(two)) for one, two in pairs if of(two)]
    if not own:
        return None
    gained = sum(now and not was for was, now in own)
    return paired_difference(gained, sum(was and not now for was, now in own), len(own))


def is_adversarial(sample: Sample) -> bool:
    """Whether its prompt is."""
    return sample.prompt.adversarial


def is_benign(sample: Sample) -> bool:
    """Whether its prompt is neither adversarial nor borderline."""
    return not sample.prompt.adversarial and not sample.prompt.borderline


def is_violation(sample: Sample) -> bool:
    """Whether the judge says so."""
    return sample.verdict == VIOLATION


def is_helpful(sample: Sample) -> bool:
    """Whether the oracle says so."""
    return sample.verdict == Verdict.HELPFUL


def cell_changes(pairs: Pairs, against: str) -> list[CellChange]:
    """Violations before, by the policy `against`, and after in every cell that has prompts."""
    found = []
    for category in RISK_CATEGORIES:
        for vector in ATTACK_VECTORS:
            own = [
                (is_violation(one), is_violation(two))
                for one, two in pairs
                if two.prompt.adversarial
                and (two.prompt.risk_category, two.prompt.attack_vector) == (category, vector)
            ]
            if own:
                found.append(
                    CellChange(
                        against=against,
                        risk_category=category,
                        attack_vector=vector,
                        before=rate(sum(was for was, _ in own), len(own)),
                        after=rate(sum(now for _, now in own), len(own)),
                    )
                )
    return found


def _absolute(settings: GateSettings, evaluation: StageEvaluation) -> list[GateCheck]:
    found = (
        ("max_false_refusals", evaluation.false_refusals),
        ("max_borderline_false_refusals", evaluation.borderline_false_refusals),
    )
    checks = []
    for name, measured in found:
        bound = getattr(settings, name)
        if bound is None or measured is None or measured.rate is None:
            continue
        assert measured.low is not None
        assert measured.high is not None
        checks.append(_check(name, None, (measured.rate, measured.low, measured.high), bound))
    return checks


def _relative(
    settings: GateSettings, against: str, pairs: Pairs, by_oracle: bool
) -> list[GateCheck]:
    found = (
        ("max_violation_rise", change(pairs, is_adversarial, is_violation)),
        ("max_helpfulness_fall", _helpfulness_fall(pairs, by_oracle)),
    )
    return [
        _check(name, against, measured, bound)
        for name, measured in found
        if (bound := getattr(settings, name)) is not None and measured is not None
    ]


def _check(
    name: str, against: str | None, measured: tuple[float, float, float], bound: float
) -> GateCheck:
    """A value with its interval against a bound: it passes unless it is wholly above."""
    value, low, high = measured
    return GateCheck(
        name=name,
        against=against,
        value=value,
        low=low,
        high=high,
        bound=bound,
        passed=low <= bound,
    )


def _helpfulness_fall(pairs: Pairs, by_oracle: bool) -> tuple[float, float, float] | None:
    """By the oracle where it judged, else by the helpfulness model; None where neither can say."""
    benign = [(one, two) for one, two in pairs if is_benign(two)]
    if by_oracle:
        return change(benign, is_benign, lambda one: not is_helpful(one))
    scored = [
        probability(one.helpfulness) - probability(two.helpfulness)
        for one, two in benign
        if one.helpfulness is not None and two.helpfulness is not None
    ]
    return mean_interval(scored) if len(scored) > 1 else None
