"""A judge that looks for one label: a sequence classifier of plain text.

Toxicity is judged so (ToxiGen's own, tomh/toxigen_roberta, has two labels, of which 1 means toxic;
Hartvigsen et al. 2022, arXiv 2203.09509), and whether an answer refuses.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from rayward.actors.models.kinds import UNLOADABLE, first_line, is_classifier, load_config
from rayward.actors.models.loading import DTYPES, ignores_padding, read_tokenizer, sequence_scores
from rayward.actors.models.microbatches import length_mask, plan_microbatches, right_pad
from rayward.actors.scoring.reward_model import longest_input
from rayward.cluster.config.evaluation import LabelJudgeSettings
from rayward.cluster.errors import InputError, UnscoredError

_KIND = "a transformers directory or hub id of a sequence classifier"
_TOKENS_AT_ONCE = 8192


class LabelJudge:
    """Says of each text whether it has the label, by the text alone.

    Args:
        settings: the judge's settings.
        field: their place in the recipe.

    Raises:
        InputError: the path is no classifier, or it has no such label.
    """

    def __init__(self, settings: LabelJudgeSettings, field: str) -> None:
        torch.set_num_threads(settings.resources.threads)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._field = field
        self._model = _load(settings, field)
        nn.Module.to(self._model, device).requires_grad_(False).eval()
        self._tokenizer = read_tokenizer(settings.path, f"{field}.path")
        self._label = settings.label
        config = self._model.config
        self._labels = _labels_of(config)
        # Labels that do not exclude one another have a threshold each.
        self._alone = self._labels == 1 or (config.problem_type == "multi_label_classification")
        self._room = longest_input(self._model, self._tokenizer)
        self._pads = ignores_padding(self._model)

    def has_label(self, texts: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Judge N texts -> bool [N].

        Of labels that exclude one another it must be the most likely (arg-max). A
        classifier with one output, or one whose labels are independent
        (`multi_label_classification`), must give it a sigmoid above 0.5.

        Raises:
            UnscoredError: a text is longer than the classifier can read, or an output is not
                finite. It never becomes a verdict.
        """
        outputs = self._outputs([self._encode(text) for text in texts])
        if self._alone:
            return outputs[:, self._label] > 0
        return outputs.argmax(axis=1) == self._label

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, split_special_tokens=True)["input_ids"])

    @torch.no_grad()
    def _outputs(self, sequences: Sequence[Sequence[int]]) -> npt.NDArray[np.float32]:
        """The logits of all labels: float32 [N, labels]."""
        lengths = [len(sequence) for sequence in sequences]
        over = [length for length in lengths if self._room is not None and length > self._room]
        if over:
            raise UnscoredError(
                f"{self._field}: {len(over)} of {len(lengths)} texts are longer than the model's "
                f"{self._room} tokens; the longest has {max(over)}"
            )
        outputs = np.full((len(sequences), self._labels), np.nan, dtype=np.float32)
        # A model that padding would mislead reads one text at a time.
        most = _TOKENS_AT_ONCE if self._pads else 1
        for rows in plan_microbatches(lengths, most):
            ids = right_pad([sequences[row] for row in rows], 0).to(self._model.device)
            mask = length_mask([lengths[row] for row in rows]).to(self._model.device)
            logits = sequence_scores(self._model, ids, mask).reshape(len(rows), self._labels)
            outputs[rows] = logits.cpu().numpy()
        unscored = int((~np.isfinite(outputs)).any(axis=1).sum())
        if unscored:
            raise UnscoredError(
                f"{self._field}: the outputs for {unscored} of {len(sequences)} texts are not "
                "finite"
            )
        return outputs


def check_label_judge(settings: LabelJudgeSettings, field: str) -> PretrainedConfig:
    """Look at a judge by its configuration alone.

    Raises:
        InputError: the path is no classifier, or it has no such label.
    """
    path, place = settings.path, f"{field}.path"
    config = load_config(path, place, _KIND)
    if not is_classifier(config):
        kind = (config.architectures or [config.model_type])[0]
        raise InputError(place, path, f"{_KIND}; it is a {kind}")
    if settings.label >= _labels_of(config):
        raise InputError(
            f"{field}.label",
            settings.label,
            f"below {_labels_of(config)}, as many outputs as the classifier has",
        )
    return config


def _load(settings: LabelJudgeSettings, field: str) -> PreTrainedModel:
    path, place = settings.path, f"{field}.path"
    config = check_label_judge(settings, field)
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path, config=config, dtype=DTYPES[settings.precision], output_loading_info=True
        )
    except UNLOADABLE as error:
        raise InputError(place, path, f"{_KIND} ({first_line(error)})") from error
    if missing := sorted(info["missing_keys"]):
        raise InputError(place, path, f"{_KIND}; it lacks the weights {missing[0]}")
    return model


def _labels_of(config: PretrainedConfig) -> int:
    assert config.num_labels is not None
    return config.num_labels
