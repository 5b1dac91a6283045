"""How the job service says no to the gateway.

An exception that crosses from one process to another is logged with its traceback on the way; a
refusal is nobody's fault there, so it crosses as a value.
"""

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

from rayward.cluster.errors import InputError
from rayward.services.http.errors import ApiError
from rayward.services.jobs.ray_jobs import RayAway

_RETRY_AFTER_S = 1

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Refusal:
    """What an `ApiError` says."""

    status: int
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: int | None = None

    def error(self) -> ApiError:
        """The error to raise in the gateway."""
        after = self.retry_after_s
        headers = {} if after is None else {"Retry-After": str(after)}
        return ApiError(self.status, self.message, self.param, self.code, headers)


def refusing(
    method: Callable[_P, Awaitable[_T]],
) -> Callable[_P, Awaitable[_T | Refusal]]:
    """Make a method return its refusals."""

    @wraps(method)
    async def answer(*arguments: _P.args, **named: _P.kwargs) -> _T | Refusal:
        try:
            return await method(*arguments, **named)
        except ApiError as error:
            after = error.headers.get("Retry-After")
            seconds = None if after is None else int(after)
            return Refusal(error.status, error.message, error.param, error.code, seconds)
        except InputError as error:
            return Refusal(422, str(error), error.field, "invalid_value")
        except (RayAway, OSError) as error:
            # Ray's job API or the disk may be back in a moment; what they said is in the log.
            logger.warning("%s: %s", method.__name__, error)
            message = f"Ray or the runs root does not answer ({type(error).__name__})"
            return Refusal(503, message, None, "overloaded", _RETRY_AFTER_S)

    return answer
