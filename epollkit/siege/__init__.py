"""A load generator: `run(Scenario("http://127.0.0.1:8000/", users=64, seconds=10)) -> Report`. docs/siege.md."""
from epollkit.siege.report import Report
from epollkit.siege.run import Siege, run
from epollkit.siege.scenario import Scenario
from epollkit.siege.urls import Target
from epollkit.siege.worker import SiegeFailed

__all__ = ["Report", "Scenario", "Siege", "SiegeFailed", "Target", "run"]
