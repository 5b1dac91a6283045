"""Rows of PKU-SafeRLHF (Ji et al. 2024, arXiv 2406.15513) and BeaverTails (2023, 2307.04657).

What `adversarial` means here:

- PKU-SafeRLHF's prompts are partly attacks and partly harmless questions that a model wrote around
  the same topics, and no column tells which. A prompt is tagged where one of its two answers is
  labelled unsafe: models that were not tuned to do harm were led to it. Where both are safe,
  nothing in the row tells an attack that failed from a harmless question; such a prompt is not
  tagged, and noted. Rows on one prompt are joined later, and one unsafe answer is enough.
- BeaverTails' prompts all come from people's red-teaming attempts (Ganguli et al. 2022): all are
  tagged, also where the answer is safe.

Harm categories belong to answers; each category of each answer is one vote for the risk category
of the prompt, by the tables below. Those that are not clearly of one of Llama 2's three risk
categories (section 4.1) have no vote: privacy, sexual content, politics, misinformation and other
matters that the law or the speaker decides. None of them is unqualified advice: giving it badly
is what Llama 2 means, and no category of the two data sets stands for it.

Ratings stay unknown. The severity levels (0-3) are of each answer alone and ordinal; nobody was
asked how much better the preferred answer is, and margins would take their difference for that.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rayward.cluster.types import Axis, Demonstration, Message, PreferencePair, Prompt, RiskCategory
from rayward.pipelines.data.rows import (
    CHOSEN_UNSAFE,
    ImportedRow,
    Record,
    RowSkipped,
    make_pair,
    make_prompt,
)

_ILLICIT: RiskCategory = "illicit_and_criminal_activities"
_HATEFUL: RiskCategory = "hateful_and_harmful_activities"

PKU_CATEGORIES: Mapping[str, RiskCategory | None] = {
    "Animal Abuse": None,
    "Copyright Issues": _ILLICIT,
    "Cybercrime": _ILLICIT,
    "Discriminatory Behavior": _HATEFUL,
    "Disrupting Public Order": None,
    "Drugs": _ILLICIT,
    "Economic Crime": _ILLICIT,
    "Endangering National Security": _ILLICIT,
    "Endangering Public Health": None,
    "Environmental Damage": None,
    "Human Trafficking": _ILLICIT,
    "Insulting Behavior": _HATEFUL,
    "Mental Manipulation": None,
    "Physical Harm": _HATEFUL,
    "Privacy Violation": None,
    "Psychological Harm": _HATEFUL,
    "Sexual Content": None,
    "Violence": _ILLICIT,
    "White-Collar Crime": _ILLICIT,
}
BEAVERTAILS_CATEGORIES: Mapping[str, RiskCategory | None] = {
    "animal_abuse": None,
    "child_abuse": _ILLICIT,
    "controversial_topics,politics": None,
    "discrimination,stereotype,injustice": _HATEFUL,
    "drug_abuse,weapons,banned_substance": _ILLICIT,
    "financial_crime,property_crime,theft": _ILLICIT,
    "hate_speech,offensive_language": _HATEFUL,
    "misinformation_regarding_ethics,laws_and_safety": None,
    "non_violent_unethical_behavior": None,
    "privacy_violation": None,
    "self_harm": _HATEFUL,
    "sexually_explicit,adult_content": None,
    "terrorism,organized_crime": _ILLICIT,
    "violence,aiding_and_abetting,incitement": _ILLICIT,
}

# Name to whether it holds; Parquet has null for a name that a row does not give.
_Flags = dict[str, bool | None]


class _PkuRow(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    prompt: str
    response_0: str
    response_1: str
    is_response_0_safe: bool
    is_response_1_safe: bool
    better_response_id: Literal[0, 1]
    safer_response_id: Literal[0, 1]
    response_0_harm_category: _Flags | None = None
    response_1_harm_category: _Flags | None = None


class _BeaverTailsRow(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    prompt: str
    response: str
    is_safe: bool
    category: _Flags | None = None


_Row = TypeVar("_Row", _PkuRow, _BeaverTailsRow)


def pku_saferlhf_row(record: Record, source: str) -> ImportedRow:
    """The prompt, a safety pair, a helpfulness pair and maybe a safety demonstration of one row.

    A pair whose chosen answer is unsafe and rejected one safe is left out and noted, of either
    axis; a row that loses both is skipped. The safer answer is a safety demonstration where it is
    safe and the prompt is tagged, that is where the other answer is unsafe. No answer is an
    ordinary demonstration.

    Raises:
        RowSkipped: with the first reason that holds, in the order of the code.
    """
    row = _parse(record, _PkuRow)
    safe = (row.is_response_0_safe, row.is_response_1_safe)
    flags = (row.response_0_harm_category, row.response_1_harm_category)
    risk_category, noted = _risk_category(flags, PKU_CATEGORIES)
    prompt = make_prompt(
        [Message("user", row.prompt)],
        source,
        adversarial=not all(safe),
        risk_category=risk_category,
    )
    pairs = []
    preferred: tuple[tuple[Axis, Literal[0, 1]], ...] = (
        ("safety", row.safer_response_id),
        ("helpfulness", row.better_response_id),
    )
    for axis, chosen in preferred:
        try:
            pairs.append(_pair(prompt, row, axis, chosen))
        except RowSkipped as excluded:
            if excluded.reason != CHOSEN_UNSAFE:
                raise
            noted.append(f"{axis}_pair_{CHOSEN_UNSAFE}")
    if not pairs:
        raise RowSkipped(CHOSEN_UNSAFE)
    demonstration = None
    if all(safe):
        noted.append("both_safe_not_adversarial")
    elif not any(safe):
        noted.append("both_unsafe_not_demonstrated")
    elif safe[row.safer_response_id]:
        answer = (row.response_0, row.response_1)[row.safer_response_id]
        demonstration = Demonstration(prompt, answer)
    responses = zip((row.response_0, row.response_1), safe, strict=True)
    return ImportedRow(
        prompt=prompt,
        pairs=tuple(pairs),
        demonstration=demonstration,
        is_safety_demonstration=demonstration is not None,
        unsafe_responses=tuple(response for response, is_safe in responses if not is_safe),
        noted=tuple(noted),
        columns_ignored=_ignored(record, _PkuRow),
    )


def beavertails_row(record: Record, source: str) -> ImportedRow:
    """The prompt and, where it is safe, the answer as a safety demonstration.

    One answer is in the data several times, once for each annotator; where they differ it is not
    shown, and noted.

    Raises:
        RowSkipped: with the first reason that holds, in the order of the code.
    """
    row = _parse(record, _BeaverTailsRow)
    risk_category, noted = _risk_category((row.category,), BEAVERTAILS_CATEGORIES)
    prompt = make_prompt(
        [Message("user", row.prompt)], source, adversarial=True, risk_category=risk_category
    )
    if not row.response.strip():
        raise RowSkipped("empty_response")
    if not row.is_safe:
        noted.append("unsafe_response_not_demonstrated")
    return ImportedRow(
        prompt=prompt,
        demonstration=Demonstration(prompt, row.response) if row.is_safe else None,
        is_safety_demonstration=row.is_safe,
        unsafe_responses=() if row.is_safe else (row.response,),
        noted=tuple(noted),
        columns_ignored=_ignored(record, _BeaverTailsRow),
    )


def _parse(record: Record, kind: type[_Row]) -> _Row:
    try:
        return kind.model_validate(record)
    except ValidationError as error:
        name = str(error.errors()[0]["loc"][0])
        what = "missing" if record.get(name) is None else "invalid"
        raise RowSkipped(f"{what}_{name}") from None


def _pair(prompt: Prompt, row: _PkuRow, axis: Axis, chosen: Literal[0, 1]) -> PreferencePair:
    responses = (row.response_0, row.response_1)
    safe = (row.is_response_0_safe, row.is_response_1_safe)
    rejected = 1 - chosen
    return make_pair(
        prompt,
        responses[chosen],
        responses[rejected],
        axis,
        chosen_safe=safe[chosen],
        rejected_safe=safe[rejected],
    )


def _risk_category(
    answers: Iterable[_Flags | None], table: Mapping[str, RiskCategory | None]
) -> tuple[RiskCategory | None, list[str]]:
    """The risk category with most votes, None where two have as many; and what to note."""
    names = [name for flags in answers for name, holds in (flags or {}).items() if holds]
    noted = ["unknown_harm_category"] if any(name not in table for name in names) else []
    votes = Counter(category for name in names if (category := table.get(name)) is not None)
    ranked = votes.most_common()
    if not ranked:
        return None, [*noted, "risk_category_not_mapped"] if names else noted
    if len(ranked) == 1:
        return ranked[0][0], noted
    if ranked[0][1] == ranked[1][1]:
        return None, [*noted, "risk_category_tied"]
    return ranked[0][0], [*noted, "risk_category_by_majority"]


def _ignored(record: Record, kind: type[_PkuRow] | type[_BeaverTailsRow]) -> tuple[str, ...]:
    return tuple(name for name in record if name not in kind.model_fields)
