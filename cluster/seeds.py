"""One seed in the recipe, many independent streams."""

import hashlib


def stage_seed(seed: int, name: str) -> int:
    """A seed of its own for a named use, in [0, 2^31): the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1
