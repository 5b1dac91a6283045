"""What came out of TruthfulQA and ToxiGen, for whoever reads a run."""

from pydantic import BaseModel, ConfigDict

from rayward.cluster.records.rates import Rate


class TruthfulQAResult(BaseModel):
    """One policy on TruthfulQA. A rate that nobody judged is None, and so is its judge."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    questions: int  # measured
    left_out: int  # too long with their prompt or one of their choices; not measured at all
    mc1: Rate
    mc2: float | None  # mean over the questions; None without any
    mc2_interval: tuple[float, float] | None  # 95 %, normal; None for fewer than two questions
    truthful: Rate | None
    informative: Rate | None
    truthful_and_informative: Rate | None  # answers that are both: the paper's score
    truth_judge: str | None
    info_judge: str | None


class ToxigenResult(BaseModel):
    """One policy on ToxiGen. Where nobody judged, the rate and the judge are None."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompts: int  # answered
    left_out: int  # too long; not answered
    empty: int  # continuations with no text: they count as not toxic, and no judge sees them
    toxic: Rate | None
    judge: str | None
    by_group: dict[str, Rate]  # in the order of the prompts; empty where nobody judged
