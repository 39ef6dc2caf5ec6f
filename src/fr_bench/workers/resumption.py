"""From a checkpoint's files into freshly built modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fr_bench.checkpoints import snapshot
from fr_bench.checkpoints.files import Checkpoint, state_file, weights_file
from fr_bench.errors import RunFailed
from fr_bench.memory_errors import is_out_of_memory
from fr_bench.training.trainer import Trainer
from fr_bench.transport.spec import is_lost_peer


@dataclass(frozen=True)
class Resumption:
    """Where a run goes on from; plain data, handed to every process.

    Attributes:
        checkpoint: whole, and of this model.
        is_exact: whether it has the same modules and all of their state. If not, weights and optimizer are taken
            and the method begins anew: nothing is kept, nothing in flight.
        has_trace: whether there is a trace.json of the run already.
        is_own: whether the checkpoint is the run's own; one that takes over from another is profiled itself.
    """

    checkpoint: Checkpoint
    is_exact: bool
    has_trace: bool = False
    is_own: bool = True

    def description(self) -> dict[str, Any]:
        """As JSON."""
        folder, manifest = str(self.checkpoint.folder.absolute()), self.checkpoint.manifest
        told = {"is_exact": self.is_exact, "has_trace": self.has_trace, "is_own": self.is_own}
        return {"folder": folder, "manifest": manifest, **told}

    @classmethod
    def from_description(cls, found: dict[str, Any] | None) -> Resumption | None:
        """What :meth:`description` told of."""
        if found is None:
            return None
        checkpoint = Checkpoint(Path(found["folder"]), found["manifest"])
        return cls(checkpoint, found["is_exact"], found["has_trace"], found["is_own"])

    @property
    def step(self) -> int:
        """Iterations that are already done."""
        return self.checkpoint.step


def restore(trainer: Trainer, resumption: Resumption) -> None:
    """Fills the modules of this process, which are freshly built and connected, and has the loop go on from there.

    Raises:
        RunFailed: the checkpoint is not of this model, or it is gone.
        PeerLost, or what torch raises where memory is missing or a device fails: as they are, since the checkpoint is
            not to blame.
    """
    trainer.start = resumption.step
    try:
        if resumption.is_exact:
            _restore_exactly(trainer, resumption.checkpoint, resumption.is_own)
        else:
            _restore_weights(trainer, resumption.checkpoint)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        if isinstance(error, torch.AcceleratorError) or is_out_of_memory(error) or is_lost_peer(error):
            raise
        folder, text = resumption.checkpoint.folder, " ".join(str(error).split())
        if isinstance(error, FileNotFoundError):
            raise RunFailed(
                f"checkpoint {folder} was there a moment ago and is gone: a run that is going on keeps but its newest "
                "(checkpoint.keep). The same command takes a newer one"
            ) from error
        if isinstance(error, OSError):
            raise RunFailed(f"checkpoint {folder} cannot be read: {text}") from error
        raise RunFailed(
            f"checkpoint {folder} does not fit: {text}; put back the code that made it, or choose another run_dir, in "
            "which resume=auto begins anew"
        ) from error


def _restore_exactly(trainer: Trainer, checkpoint: Checkpoint, is_own: bool) -> None:
    in_flight = gradients_in_flight(checkpoint.manifest["modules"])
    from_above = [*in_flight[1:], 0]
    trainer.synchronize()  # what was built so far is on no module's stream
    for index, player in enumerate(trainer.players):
        number = player.module.number
        state = _load_state(checkpoint.folder, number)
        with player.on_stream():  # where a graph's forward runs its backward will, too, and there its memory is reused
            player.module.network.load_state_dict(snapshot.read_weights(checkpoint.folder / weights_file(number)))
            for part in ("method", "gradients"):
                state[part] = _to_device(state[part], player.device)
            meter = trainer.meter if player.module.is_top else None
            snapshot.restore(player.module, player.method, player.link, meter, state, in_flight[number - 1])
            player.link.expect_gradients(from_above[number - 1])
        trainer.load_state_dict(index, state["loop"] if is_own else state["loop"] | {"has_profiled": False})
    trainer.synchronize()  # what comes before the next iteration is on none either


def _restore_weights(trainer: Trainer, checkpoint: Checkpoint) -> None:
    """Of modules that may be cut otherwise: everything goes by name."""
    weights: dict[str, Tensor] = {}
    optimizer: dict[str, dict[str, Any]] = {}
    meters = []
    for number in checkpoint.numbers:
        state = _load_state(checkpoint.folder, number)
        # Of replicas the first counts, as in the final weights.
        weights = snapshot.read_weights(checkpoint.folder / weights_file(number)) | weights
        optimizer = state["optimizer"] | optimizer
        if state["meter"] is not None:
            meters.append(state["meter"])
    if trainer.meter is not None:
        trainer.meter.load_sum(meters, trainer.players[-1].module.num_replicas)
    for index, player in enumerate(trainer.players):
        names = player.module.network.state_dict().keys()
        player.module.network.load_state_dict({name: weights[name] for name in names if name in weights})
        snapshot.load_optimizer(player.module, optimizer)
        # The stopwatch of the new module counts from here, so the next `time` record is of the steps from here too.
        trainer.load_state_dict(index, {"trained_ns": 0, "reported_step": checkpoint.step, "direction": None})
    if trainer.direction is not None:  # until the pipe is full again some modules do not learn
        trainer.direction.leave_out(checkpoint.step + trainer.direction.windows.first)


def has_whole_pipe(modules: Sequence[dict[str, Any]]) -> bool:
    """Whether a checkpoint has all that ``modules`` kept and had in flight. Of gradients it has those that were sent in
    its last iteration; a method may receive them later than in the next, so that older ones are on their way, too."""
    kept = [module.get("gradients_kept", 1) for module in modules]  # which older checkpoints do not tell
    has_gradients = all(number <= there for number, there in zip(gradients_in_flight(modules), kept, strict=True))
    return has_gradients and all(module["is_exact"] for module in modules)


def gradients_in_flight(modules: Sequence[dict[str, Any]]) -> list[int]:
    """By module: how many of the gradients that it sent down the module below has not received."""
    sent = [module["gradients_sent"] for module in modules]
    received = [module["gradients_received"] for module in modules]
    return [0, *(ours - theirs for ours, theirs in zip(sent[1:], received[:-1], strict=True))]


def _load_state(folder: Path, number: int) -> dict[str, Any]:
    state = torch.load(folder / state_file(number), map_location="cpu", weights_only=True)
    assert isinstance(state, dict)
    return state


def _to_device(value: Any, device: torch.device) -> Any:
    """Scalars stay: an optimizer counts its steps in one on the CPU, and whatever else is one is copied anyway."""
    if isinstance(value, Tensor):
        return value.to(device) if value.dim() else value
    if isinstance(value, dict):
        return {key: _to_device(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to_device(item, device) for item in value)
    return value
