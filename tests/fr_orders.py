"""Three schedules of FR that give the same numbers in more time than that of fr_bench.simulation.features_replay.

The timelines show iterations with a full pipe, for K = 3 equal modules: P play, R replay (forward), B backward,
. wait; a backward takes as long as two forwards.
"""

from __future__ import annotations

from fr_bench.simulation.costs import Setup
from fr_bench.simulation.parts import Part, asynchronous, delayed, learn_from_the_loss, starting_at
from fr_bench.simulation.program import Barrier, Operation, Schedule


def waiting_before_the_replay(setup: Setup) -> Schedule:
    """The gradient is waited for one forward earlier, so that nothing hides its transport.

    Drawn with messages that take half a forward (a character is half a forward):

        module 1   PP..RRBBBBPPRRBBBBPP..RRBBBB..
        module 2   ...PPRRBBBB..PPRRBBBBPPRRBBBB.
        module 3   ......PPBBBB....PPBBBB..PPBBBB
    """
    return delayed(
        "fr, waiting before the replay",
        setup,
        lambda part: (
            [*part.receive_features(), *part.play()],
            [*part.receive_gradient(), *part.replay(), *part.descend()],
        ),
    )


def authors_order(setup: Setup) -> Schedule:
    """The authors' code: the gradient for iteration t + 1 is waited for at the end of iteration t, before the play.

        module 1   PRBB.PRBB.PRBB.         its second P waits for the first B of module 2, and that for its first P
        module 2   .PRBB.PRBB.PRBB
        module 3   ..PBB..PBB..PBB

    Their single buffer for labels, which would bound it further for K > 8, is left out.
    """

    def lower(part: Part) -> list[Operation]:
        play = [*part.receive_features(), *part.play()]
        learn = [*part.replay(), *part.backward(), *part.step(), *part.send_gradient()]
        return [
            *play,
            *starting_at(part.delay, learn),
            *starting_at(part.delay - 1, part.receive_gradient()),
        ]

    return asynchronous("fr, authors' order", setup, learn_from_the_loss, lower)


def with_barriers(setup: Setup) -> Schedule:
    """The algorithm read as two phases: all modules play, one after the other; then all of them learn.

    module 1   P..RBBP..RBBP..RBB
    module 2   .P.RBB.P.RBB.P.RBB
    module 3   ..PBB...PBB...PBB.
    """

    def top(part: Part) -> list[Operation]:
        return [*part.receive_features(), *part.play_with_graph(), Barrier(), *part.descend(), Barrier()]

    def lower(part: Part) -> list[Operation]:
        learn = [*part.receive_gradient(), *part.replay(), *part.descend()]
        play = [*part.receive_features(), *part.play()]
        return [*play, Barrier(), *starting_at(part.delay, learn), Barrier()]

    return asynchronous("fr, barriers between phases", setup, top, lower)
