"""ToxiGen on a real policy, judged by a real classifier, and counted by hand."""

import os
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from rayward.actors.sampling.policy_session import PolicySession
from rayward.actors.scoring.label_judge import LabelJudge
from rayward.cluster.config.evaluation import LabelJudgeSettings, ToxigenSettings
from rayward.cluster.config.ppo import SamplingSettings
from rayward.cluster.records.benchmarks import ToxigenPrompt
from rayward.cluster.records.rates import rate
from rayward.pipelines.evaluation.published_scores import REFERENCE_ROWS, comparison_rows
from rayward.pipelines.evaluation.toxigen import (
    NamedToxicityJudge,
    choose_prompts,
    cut_continuation,
    measure_toxigen,
    open_toxicity_judge,
)
from tests.tiny_judges import write_toxicity_classifier

REAL_DATA = Path(os.environ.get("RAYWARD_REAL_DATA", Path(__file__).parents[4] / "shared" / "data"))


def settings(temperature: float = 0.1, top_p: float = 1e-6, tokens: int = 12) -> ToxigenSettings:
    """By default as good as greedy: of the nucleus, the likeliest token alone is left."""
    return ToxigenSettings(
        sampling=SamplingSettings(
            temperature=temperature,
            top_p=top_p,
            max_prompt_tokens=700,
            max_response_tokens=tokens,
        )
    )


@pytest.fixture(scope="module")
def prompts() -> list[ToxigenPrompt]:
    """The first real prompts of four files, three of each."""
    folder = REAL_DATA / "toxigen"
    if not folder.is_dir():
        pytest.skip("no sample of ToxiGen beside the checkout")
    found = []
    for group in ("muslim", "women"):
        for kind in ("hate", "neutral"):
            lines = (folder / f"{kind}_{group}_1k.txt").read_text(encoding="utf-8").splitlines()
            for i, line in enumerate(lines[:3]):
                text = line.replace("\\n", "\n").rstrip("-\n") + "\n-"
                found.append(ToxigenPrompt(f"{kind}-{group}-{i}", group, kind == "hate", text))
    return found


def made(id: str, text: str, group: str = "women", hateful: bool = False) -> ToxigenPrompt:
    return ToxigenPrompt(id, group, hateful, f"- {text}\n-")


def test_a_policy_goes_on_with_the_text_as_it_stands(
    benchmark_session: PolicySession, prompts: list[ToxigenPrompt]
) -> None:
    told: list[int] = []
    result, samples = measure_toxigen(
        benchmark_session, prompts, settings(), None, seed=0, on_done=told.append
    )
    assert (result.prompts, result.left_out, sum(told)) == (12, 0, 12)
    # Nobody judged: no numbers.
    assert (result.toxic, result.judge, result.by_group) == (None, None, {})
    tokenizer = AutoTokenizer.from_pretrained(benchmark_session.model)
    model = AutoModelForCausalLM.from_pretrained(benchmark_session.model).eval()
    for prompt, sample in zip(prompts, samples, strict=True):
        ids = tokenizer(prompt.text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            whole = model.generate(ids, do_sample=False, max_new_tokens=12)[0]
        text = tokenizer.decode(whole[ids.shape[1] :], skip_special_tokens=True)
        assert sample.response == cut_continuation(text)
        assert sample.prompt.messages[0].content == prompt.text
        assert (sample.verdict, sample.prompt.source) == (None, "toxigen")


def divided_classifier(directory: Path, texts: list[str]) -> Path:
    """One that calls about half of the texts toxic."""
    path = write_toxicity_classifier(directory)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    with torch.no_grad():
        outputs = [model(**tokenizer(text, return_tensors="pt")).logits[0] for text in texts]
        differences = torch.stack([output[1] - output[0] for output in outputs]).sort().values
        # Between the two in the middle, so that no verdict hangs on a last bit.
        model.classifier.bias[1] -= differences[len(texts) // 2 - 1 :][:2].mean()
    model.save_pretrained(path)
    return path


def test_a_classifier_in_an_actor_of_its_own_gives_the_rates(
    benchmark_session: PolicySession, tmp_path: Path
) -> None:
    rows = [made(str(i), "x" * i, group="a" if i < 6 else "b") for i in range(16)]
    hot = settings(temperature=2.0, top_p=1.0)
    texts = [one.response for one in measure_toxigen(benchmark_session, rows, hot, None, 0)[1]]
    judge = LabelJudgeSettings(path=str(divided_classifier(tmp_path, texts)))
    with open_toxicity_judge(judge) as named:
        assert named is not None
        result, samples = measure_toxigen(benchmark_session, rows, hot, named, seed=0)
    assert [sample.response for sample in samples] == texts
    verdicts = LabelJudge(judge, "evaluation.toxigen.judge").has_label(texts).tolist()
    assert 0 < sum(verdicts) < 16  # so the comparison says something
    assert [sample.verdict == "toxic" for sample in samples] == verdicts
    assert result.judge == judge.path
    assert result.toxic == rate(sum(verdicts), 16)
    assert result.by_group == {"a": rate(sum(verdicts[:6]), 6), "b": rate(sum(verdicts[6:]), 10)}
    with open_toxicity_judge(None) as nobody:
        assert nobody is None


def test_an_empty_continuation_is_counted_and_not_judged(benchmark_session: PolicySession) -> None:
    """Of one byte each, drawn hot, some are white space or no text at all."""
    asked: list[str] = []

    def all_toxic(texts: list[str]) -> list[bool]:
        asked.extend(texts)
        return [True] * len(texts)

    rows = [made(str(i), "x") for i in range(200)]
    hot = settings(temperature=2.0, top_p=1.0, tokens=1)
    judge = NamedToxicityJudge("all", all_toxic)
    result, samples = measure_toxigen(benchmark_session, rows, hot, judge, seed=0)
    empty = [sample.response == "" for sample in samples]
    assert 0 < sum(empty) < 100
    assert result.empty == sum(empty)
    assert "" not in asked
    assert result.toxic == rate(200 - sum(empty), 200)
    assert [sample.verdict == "not toxic" for sample in samples] == empty
    again = measure_toxigen(benchmark_session, rows, hot, judge, seed=0)[1]
    other = measure_toxigen(benchmark_session, rows, hot, judge, seed=1)[1]
    assert [one.response for one in again] == [one.response for one in samples]
    assert [one.response for one in other] != [one.response for one in samples]


def test_what_does_not_fit_is_left_out_and_counted(benchmark_session: PolicySession) -> None:
    long = settings(tokens=benchmark_session.max_model_len - 100)
    rows = [made("fits", "x" * 96), made("does not", "x" * 97), made("does", "x")]
    told: list[int] = []
    result, samples = measure_toxigen(
        benchmark_session, rows, long, None, seed=0, on_done=told.append
    )
    assert (result.prompts, result.left_out, sum(told)) == (2, 1, 3)
    assert [sample.prompt.id for sample in samples] == ["fits", "does"]


def test_the_first_prompts_of_each_group_hateful_and_benign_are_taken() -> None:
    rows = [made(f"{group}{hateful}{i}", "x", group, hateful)
            for group in "ab" for hateful in (True, False) for i in range(3)]  # fmt: skip
    two = ToxigenSettings(prompts=2)
    assert [row.id[-1] for row in choose_prompts(rows, two)] == ["0", "1"] * 4
    assert choose_prompts(rows, ToxigenSettings()) == rows


@pytest.mark.parametrize(
    ("text", "statement"),
    [(" they are kind\n- so", "they are kind"), ("\n- so", ""), ("  ", ""), (" a - b ", "a - b")],
)
def test_a_continuation_ends_with_its_line(text: str, statement: str) -> None:
    assert cut_continuation(text) == statement


def test_published_models_stand_behind_the_measured_one() -> None:
    measured, *published = comparison_rows("mine", rate(1, 8), None)
    assert (measured.name, measured.size) == ("mine", None)
    assert (measured.truthfulqa, measured.toxigen) == (12.5, None)
    assert published == list(REFERENCE_ROWS)
    assert len({(row.name, row.size) for row in published}) == 12
    best = max(published, key=lambda row: row.truthfulqa or 0)
    assert (best.name, best.size, best.truthfulqa, best.toxigen) == ("Llama 2", "70B", 50.18, 24.6)
    assert comparison_rows("mine", rate(0, 0), rate(0, 3))[0].truthfulqa is None
    assert comparison_rows("mine", rate(0, 0), rate(0, 3))[0].toxigen == 0
