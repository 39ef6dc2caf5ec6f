"""Event simulation of schedules: what would K = 8, 16 or 64 devices give?

    setup = Setup(modules, message_bytes, Link(latency_s=20e-6, bandwidth_bytes_per_s=12e9))
    prediction = simulate(make_schedule("fr", setup))
    prediction.step_time_s, prediction.busy_share, speedup_over_locked(prediction, setup)

It knows nothing of torch: seconds and bytes in, seconds out. A prediction is as good as its costs, which have to be
measured while all modules are busy, and holds for modules that do not slow each other down further.
"""

from fr_bench.simulation.costs import BlockTimes, Link, ModuleTimes, Setup, group_blocks
from fr_bench.simulation.engine import Deadlock, Span
from fr_bench.simulation.predict import METHODS, PEERS, PIPELINES, make_schedule, speedup_over_locked
from fr_bench.simulation.program import Schedule
from fr_bench.simulation.result import Prediction, simulate
from fr_bench.simulation.timeline import draw_timeline, measured_spans

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
    "Span",
    "draw_timeline",
    "group_blocks",
    "make_schedule",
    "measured_spans",
    "simulate",
    "speedup_over_locked",
]
