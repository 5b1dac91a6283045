"""Errors that a person can act on."""


class InputError(ValueError):
    """Something that the user gave is wrong.

    The command line prints it as one line and exits with 2; HTTP answers 4xx.

    Args:
        field: what is wrong: a setting's dotted name, an option, a file.
        value: what was found there.
        expected: what would be right, as a phrase.
    """

    def __init__(self, field: str, value: object, expected: str) -> None:
        self.field = field
        self.value = value
        self.expected = expected
        super().__init__(f"{field}: got {value!r}, expected {expected}")

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, object, str]]:
        return type(self), (self.field, self.value, self.expected)


class UnscoredError(RuntimeError):
    """A score could not be had. It never becomes a number."""


class StaleEngineError(RuntimeError):
    """A sampler does not hold the weight version that it was asked to sample from."""


class NodeLost(RuntimeError):
    """A machine of the cluster is gone, and with it a part of the run."""


class RunStopped(Exception):
    """The run was asked to stop and did, where `--resume` can go on."""


class GateFailed(Exception):
    """A policy did not hold what the recipe requires of it, and is not promoted."""
