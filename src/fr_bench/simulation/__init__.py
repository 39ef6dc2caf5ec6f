"""Event simulation of schedules: what would K = 8, 16 or 64 devices give?

    setup = Setup(modules, message_bytes, Link(latency_s=20e-6, bandwidth_bytes_per_s=12e9))
    prediction = simulate(make_schedule("fr", setup))
    prediction.step_time_s, prediction.busy_share

It knows nothing of torch: seconds and bytes in, seconds out. A prediction is as good as its costs, which have to be
measured while all modules are busy, and holds for modules that do not slow each other down further.
"""

from fr_bench.simulation.costs import BlockTimes, Link, ModuleTimes, Setup, group_blocks
from fr_bench.simulation.engine import Deadlock
from fr_bench.simulation.predict import METHODS, PEERS, PIPELINES, make_schedule
from fr_bench.simulation.program import Schedule
from fr_bench.simulation.result import Prediction, simulate

__all__ = [
    "METHODS",
    "PEERS",
    "PIPELINES",
    "BlockTimes",
    "Deadlock",
    "Link",
    "ModuleTimes",
    "Prediction",
    "Schedule",
    "Setup",
    "group_blocks",
    "make_schedule",
    "simulate",
]
