"""How much text a model may have room for, told before anybody waits for its tokens.

A tokenizer reads a megabyte in a second or more, and a text that is cut into pieces at the names of
special tokens far more slowly. What cannot fit is found by counting instead.
"""

import re
from collections.abc import Sequence
from itertools import islice
from typing import Literal

from transformers import PreTrainedTokenizerBase

# As long as the longest in today's vocabularies, and with room for tokenizers that drop white space
# or make one token of a whole word that they do not know.
_LONGEST_TOKEN = 128


class TextBounds:
    """What may fit into the room of a model.

    Args:
        tokenizer: the model's; it is not kept.
        room: tokens; None: no limit is known, and everything may fit.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, room: int | None) -> None:
        self._names = room
        longest = max(_LONGEST_TOKEN, *map(len, tokenizer.get_vocab()))
        self._characters = None if room is None else room * longest
        flagged = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
        specials = {*tokenizer.all_special_tokens, *flagged}
        # The longest first: one special token's text may be the beginning of another's.
        names = "|".join(map(re.escape, sorted(specials, key=len, reverse=True)))
        self._name = re.compile(names or r"(?!)")

    def excess(self, texts: Sequence[str]) -> str | None:
        """What is too much in texts that are read together; None where they may fit.

        The name of a special token takes a token or more, whether it is read as text or as that.
        """
        if self._characters is None or self._names is None:
            return None
        characters = sum(map(len, texts))
        if characters > self._characters:
            return f"{characters} characters"
        names = sum(1 for text in texts for _ in islice(self._name.finditer(text), self._names + 1))
        return f"{names} names of special tokens" if names > self._names else None

    def cut(self, texts: Sequence[str], side: Literal["left", "right"]) -> list[str]:
        """The same number of texts, of which so much is taken off at one side that all may fit.

        What is left still takes as many tokens as there is room for, so that a later cut by tokens
        gives what it gives without this one.
        """
        characters, names = self._characters, self._names
        if characters is None or names is None:
            return list(texts)
        kept = []
        for text in texts if side == "right" else reversed(texts):
            part = text[:characters] if side == "right" else text[max(0, len(text) - characters) :]
            spans = [match.span() for match in self._name.finditer(part)]
            characters -= len(part)
            if len(spans) > names:
                # Up to the first name, from where the cut is not, that is one too many.
                part = part[: spans[names][0]] if side == "right" else part[spans[-names - 1][1] :]
                characters = 0
            names = max(0, names - len(spans))
            kept.append(part)
        return kept if side == "right" else kept[::-1]
