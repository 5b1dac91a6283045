"""Rows of Anthropic's hh-rlhf: two transcripts that part at the last assistant turn.

What is done with the oddities of this data:

- contexts that differ before the last assistant turn: skipped, the answers do not compare;
- an empty answer: skipped, either side;
- roles that do not alternate: skipped. Chat templates refuse them, and merging the turns would
  make up one that nobody wrote (some are lost line breaks: the turn between is inside a text);
- a role label inside a turn ("Human:" with no empty line before it): kept and noted.
"""

import re
from itertools import pairwise

from rayward.cluster.types import Axis, Demonstration, Message, MessageRole
from rayward.pipelines.data.rows import ImportedRow, Record, RowSkipped, make_pair, make_prompt

_TURN = re.compile(r"\n\n(Human|Assistant):")
_LABEL = re.compile(r"\b(?:Human|Assistant):")
_ROLES: dict[str, MessageRole] = {"Human": "user", "Assistant": "assistant"}


def hh_rlhf_row(record: Record, axis: Axis, source: str) -> ImportedRow:
    """The prompt, the pair and the demonstration (the chosen answer) of one row.

    Prompts are tagged adversarial on the safety axis only. Turns lose outer white space. The data
    has no safety labels, categories or ratings.

    Raises:
        RowSkipped: with the first reason that holds, in the order of the code.
    """
    chosen = _turns(record, "chosen")
    rejected = _turns(record, "rejected")
    if chosen[:-1] != rejected[:-1]:
        raise RowSkipped("contexts_differ")
    if any(before.role == after.role for before, after in pairwise(chosen)):
        raise RowSkipped("roles_do_not_alternate")
    prompt = make_prompt(chosen[:-1], source, adversarial=axis == "safety")
    pair = make_pair(prompt, chosen[-1].content, rejected[-1].content, axis)
    label_inside = any(_LABEL.search(turn.content) for turn in (*chosen, rejected[-1]))
    return ImportedRow(
        prompt=prompt,
        pairs=(pair,),
        demonstration=Demonstration(prompt, pair.chosen),
        noted=("role_label_inside_turn",) if label_inside else (),
        columns_ignored=tuple(name for name in record if name not in ("chosen", "rejected")),
    )


def _turns(record: Record, key: str) -> list[Message]:
    if key not in record:
        raise RowSkipped(f"missing_{key}")
    text = record[key]
    if not isinstance(text, str):
        raise RowSkipped(f"invalid_{key}")
    before, *parts = _TURN.split(text)
    if before or not parts or parts[0] != "Human":
        raise RowSkipped("does_not_start_with_human")
    turns = [
        Message(_ROLES[label], content.strip())
        for label, content in zip(parts[::2], parts[1::2], strict=True)
    ]
    if turns[-1].role != "assistant":
        raise RowSkipped("last_turn_not_assistant")
    return turns
