"""Early stopping: best, misses, patience."""

from dataclasses import asdict

from rayward.cluster.config.ppo import EarlyStopSettings
from rayward.pipelines.ppo.early_stop import EarlyStop


def test_it_stops_after_so_many_measurements_without_a_new_best() -> None:
    stop = EarlyStop(EarlyStopSettings(every=5, patience=2, min_improvement=0.1))
    for step, objective, exhausted in [
        (5, 0.5, False),
        (10, 0.55, False),  # better, but by too little: a miss
        (15, 0.61, False),  # a new best, the misses are forgotten
        (20, 0.60, False),
        (25, 0.70, True),
    ]:
        stop.observe(step, objective)
        assert stop.exhausted is exhausted
    assert stop.state.best_step == 15


def test_it_measures_every_so_many_steps_and_at_the_end() -> None:
    stop = EarlyStop(EarlyStopSettings(every=5))
    assert [step for step in range(1, 13) if stop.due(step, 12)] == [5, 10, 12]


def test_its_state_survives_a_checkpoint() -> None:
    stop = EarlyStop(EarlyStopSettings(every=1, patience=2))
    stop.observe(1, 0.5)
    stop.observe(2, 0.4)
    restored = EarlyStop(EarlyStopSettings(every=1, patience=2))
    restored.restore(asdict(stop.state))
    restored.observe(3, 0.4)
    assert restored.exhausted
    assert restored.state.best_step == 1
