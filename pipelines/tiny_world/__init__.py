"""A small generated language in which the truth is known: data, and an oracle to judge by."""

from rayward.pipelines.tiny_world.data import TinyWorld, generate
from rayward.pipelines.tiny_world.oracle import Oracle, Verdict
from rayward.pipelines.tiny_world.prompts import SAFETY_PREPROMPTS

__all__ = ["SAFETY_PREPROMPTS", "Oracle", "TinyWorld", "Verdict", "generate"]
