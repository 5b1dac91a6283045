"""The report's words and numbers, as people read them."""

import re
from collections.abc import Sequence
from datetime import datetime

from rayward.cluster.config.recipe import Recipe
from rayward.cluster.records.plan import PREVIOUS, START
from rayward.cluster.records.rates import MeanScore, Rate, StageEvaluation
from rayward.cluster.stages import declared_stages

_NAMES = {
    START: "start model",
    PREVIOUS: "previous model",
    "illicit_and_criminal_activities": "illicit and criminal",
    "hateful_and_harmful_activities": "hateful and harmful",
    "unqualified_advice": "unqualified advice",
    "non_english": "non-English",
}
# A stage of the second round, or of a later one.
_ROUND = re.compile(r"(?P<stage>[a-z_]+)-(?P<round>\d+)")
# A dash after which a line may not end.
_TO = "\u2013\u2060"


def label(name: str) -> str:
    """The plain name of a stage, category, vector or verdict; "PPO 2" is PPO of round 2."""
    later = _ROUND.fullmatch(name)
    if later is not None:
        return f"{label(later['stage'])} {later['round']}"
    stage = declared_stages().get(name)
    return _NAMES.get(name, name.replace("_", " ")) if stage is None else stage.label


def after(policy: str) -> str:
    """Which policy was measured: the one after a stage, or one that no stage made."""
    return label(policy) if policy in (START, PREVIOUS) else f"after {label(policy)}"


def sentence(text: str) -> str:
    """The text with a capital to begin with; the rest as it is, SFT and PPO too."""
    return text[:1].upper() + text[1:]


def percent(share: float | None) -> str:
    """A share as a percentage with one decimal."""
    return "\u2013" if share is None else f"{100 * share:.1f}\u00a0%"


def interval(found: Rate | MeanScore) -> str:
    """The interval of a share, in per cent."""
    if found.low is None or found.high is None:
        return ""
    return interval_of(found.low, found.high)


def interval_of(low: float, high: float) -> str:
    """Two shares and what lies between, in per cent."""
    return f"{100 * low:.1f}{_TO}{100 * high:.1f}"


def points(change: float) -> str:
    """A change of a share in percentage points, with its sign."""
    text = f"{100 * change:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "\u2212")


def points_between(low: float, high: float) -> str:
    """The interval of a change, in percentage points."""
    return f"{points(low)} to {points(high)}"


def seconds(duration: float) -> str:
    """A duration for people: below a minute in seconds, then in minutes, then in hours."""
    if duration < 60:
        return f"{duration:.3g}\u00a0s"
    minutes, rest = divmod(round(duration), 60)
    if minutes < 60:
        return f"{minutes}\u00a0min {rest}\u00a0s"
    return f"{minutes // 60}\u00a0h {minutes % 60}\u00a0min"


def moment(stamp: str) -> str:
    """An ISO time as date and time of day."""
    return f"{datetime.fromisoformat(stamp):%Y-%m-%d %H:%M %Z}"


def number(value: float) -> str:
    """A measured number with at least three digits that count, and a real minus sign."""
    text = f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return text.replace("-", "\u2212")


def logit(score: float, digits: int = 2) -> str:
    """A score with this many decimals and a real minus sign."""
    return f"{score:.{digits}f}".replace("-", "\u2212")


def headline(ends: Sequence[StageEvaluation]) -> str:
    """The result in one sentence: the first policy against the last, which may be one."""
    if not ends:
        return "Nothing was evaluated in this run."
    told = []
    for name, found in (
        ("Violations", [one.violations for one in ends]),
        ("helpful", [one.helpful for one in ends]),
    ):
        shown = [_with_interval(one) for one in found]
        same = set(shown) == {"not judged"}
        told.append(f"{name} " + ("not judged" if same else " → ".join(shown)))
    return ", ".join(told) + "."


def stages_told(recipe: Recipe) -> str:
    """The stages of a recipe in order, and how often they are gone through."""
    text = " → ".join(label(name) for name in recipe.stages)
    return text if recipe.rounds == 1 else f"{text}; {recipe.rounds} rounds"


def _with_interval(found: Rate | None) -> str:
    if found is None:
        return "not judged"
    if found.rate is None:
        return "no prompts"
    return f"{percent(found.rate)} ({interval(found)})"
