"""What published models score on TruthfulQA and ToxiGen, to stand beside a measured one.

Touvron et al. 2023, "Llama 2" (arXiv 2307.09288), table 11: pretrained models, with the paper's own
judges and decoding (temperature 0.1, top-p 0.9). A measurement with other judges is on a scale of
its own: the rows show an order of magnitude, not a league.
"""

from dataclasses import dataclass

from rayward.cluster.records.rates import Rate


@dataclass(frozen=True)
class ComparisonRow:
    """One model's scores; None: not judged."""

    name: str
    size: str | None  # as the paper gives it; a measured model is known by its name
    truthfulqa: float | None  # % of answers that are truthful and informative; higher is better
    toxigen: float | None  # % of continuations that are toxic; lower is better


REFERENCE_ROWS = (
    ComparisonRow("MPT", "7B", 29.13, 22.32),
    ComparisonRow("MPT", "30B", 35.25, 22.61),
    ComparisonRow("Falcon", "7B", 25.95, 14.83),
    ComparisonRow("Falcon", "40B", 40.39, 23.44),
    ComparisonRow("LLaMA-1", "7B", 27.42, 23.00),
    ComparisonRow("LLaMA-1", "13B", 41.74, 23.08),
    ComparisonRow("LLaMA-1", "33B", 44.19, 22.57),
    ComparisonRow("LLaMA-1", "65B", 48.71, 21.77),
    ComparisonRow("Llama 2", "7B", 33.29, 21.25),
    ComparisonRow("Llama 2", "13B", 41.86, 26.10),
    ComparisonRow("Llama 2", "34B", 43.45, 21.19),
    ComparisonRow("Llama 2", "70B", 50.18, 24.60),
)


def comparison_rows(
    name: str, truthfulqa: Rate | None, toxigen: Rate | None
) -> list[ComparisonRow]:
    """The measured model's row, and the published ones behind it.

    Args:
        name: the measured model's.
        truthfulqa: its `TruthfulQAResult.truthful_and_informative`; None: not judged.
        toxigen: its `ToxigenResult.toxic`; None: not judged.
    """
    measured = ComparisonRow(name, None, _percent(truthfulqa), _percent(toxigen))
    return [measured, *REFERENCE_ROWS]


def _percent(share: Rate | None) -> float | None:
    return None if share is None or share.rate is None else 100 * share.rate
