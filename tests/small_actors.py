"""Actors for tests. Ray's workers import them by name, which they cannot from a test file."""

import threading

import ray


class Where:
    """Says which placement group it runs in."""

    def __init__(self, name: str) -> None:
        self.name = name

    def answer(self) -> tuple[str, str | None]:
        group = ray.util.get_current_placement_group()
        return self.name, group.id.hex() if group else None


class Deaf:
    """A sampler that does not answer."""

    def start_weight_update(self) -> None:
        threading.Event().wait(30)
