"""The methods that keep their graphs: DDG learns from delayed gradients, DNI from synthetic ones, DGL from losses of
its modules' own.

Drawn with a full pipe, K = 3 equal modules and messages that take no time: P play, B backward.

    module 1   PBBPBBPBB..
    module 2   .PBBPBBPBB.
    module 3   ..PBBPBBPBB

In DDG the B of an iteration is that of an older batch; in DNI and DGL that of the P before it. In DDG and DNI nothing
separates the wait for a gradient from the backward that needs it, so messages are hidden only where the module has time
to spare; in DGL none is waited for.
"""

from __future__ import annotations

from fr_bench.simulation.costs import Setup
from fr_bench.simulation.parts import Part, asynchronous, delayed, learn_from_the_loss, starting_at
from fr_bench.simulation.program import Operation, Schedule


def delayed_gradients(setup: Setup) -> Schedule:
    """DDG as in fr_bench.methods.ddg. Copying weights for the stash counts as part of ``forward_s``."""
    return delayed(
        "ddg",
        setup,
        lambda part: (
            [*part.receive_features(), *part.play_with_graph()],
            [*part.receive_gradient(), *part.descend()],
        ),
    )


def synthetic_gradients(setup: Setup, name: str = "dni") -> Schedule:
    """DNI and cDNI as in fr_bench.methods.dni: the synthesizer's target comes from the iteration before."""

    def lower(part: Part) -> list[Operation]:
        return [
            *part.receive_features(),
            *part.play_with_graph(),
            *starting_at(1, part.receive_gradient()),
            *part.synthesize(),
            *part.descend(),
        ]

    return asynchronous(name, setup, learn_from_the_loss, lower)


def local_losses(setup: Setup) -> Schedule:
    """DGL as in fr_bench.methods.dgl: features go up, and nothing comes down."""

    def top(part: Part) -> list[Operation]:
        return [*part.receive_features(), *part.play_with_graph(), *part.backward(), *part.step()]

    def lower(part: Part) -> list[Operation]:
        return [
            *part.receive_features(),
            *part.play_with_graph(),
            *part.synthesize(),
            *part.backward(),
            *part.step(),
        ]

    return asynchronous("dgl", setup, top, lower)
