"""The scenario library: every argument of the field as a flow that runs and is checked."""

from .registry import Scenario, UnknownScenario, all_scenarios, find, register

__all__ = ["Scenario", "UnknownScenario", "all_scenarios", "find", "register"]
