"""The weight of the KL penalty: fixed, or steered towards a target."""

from rayward.cluster.config.ppo import KLSettings

_MAX_ERROR = 0.2  # Ziegler et al. 2019: errors beyond this count as this


class KLController:
    """Holds beta.

    Where it is adaptive, each batch of n rollouts multiplies beta by 1 + e * n / horizon, with
    e = KL / target - 1 clipped to [-0.2, 0.2] (Ziegler et al. 2019, section 2.2).
    """

    def __init__(self, settings: KLSettings) -> None:
        self._adaptive = settings.adaptive
        self.beta = settings.beta

    def observe(self, sequence_kl: float, rollouts: int) -> None:
        """Take in the mean KL of a batch's whole answers, in nats."""
        if self._adaptive is None:
            return
        error = sequence_kl / self._adaptive.target - 1
        error = min(max(error, -_MAX_ERROR), _MAX_ERROR)
        self.beta *= 1 + error * rollouts / self._adaptive.horizon

    def state(self) -> dict[str, float]:
        """What a checkpoint holds."""
        return {"beta": self.beta}

    def restore(self, state: dict[str, float]) -> None:
        """Take up beta where it was."""
        self.beta = state["beta"]
