"""FR's schedule; tests/fr_orders.py has three others that give the same numbers in more time.

The timeline shows iterations with a full pipe, for K = 3 equal modules: P play, R replay (forward), B backward,
. wait; a backward takes as long as two forwards.
"""

from __future__ import annotations

from fr_bench.simulation.costs import Setup
from fr_bench.simulation.parts import delayed
from fr_bench.simulation.program import Schedule


def features_replay(setup: Setup) -> Schedule:
    """As in fr_bench.methods.fr: receive, play, send, replay forward, wait, backward, send down, step.

    Drawn with messages that take half a forward (a character is half a forward). The two messages of a round trip
    through a cut have one replay to hide behind: so up to half a forward each costs nothing.

        module 1   PPRRBBBBPPRRBBBBPPRRBBBB....
        module 2   ...PPRRBBBBPPRRBBBBPPRRBBBB.
        module 3   ......PPBBBB..PPBBBB..PPBBBB         no replay: with equal cuts it waits
    """
    return delayed(
        "fr",
        setup,
        lambda part: (
            [*part.receive_features(), *part.play()],
            [*part.replay(), *part.receive_gradient(), *part.descend()],
        ),
    )
