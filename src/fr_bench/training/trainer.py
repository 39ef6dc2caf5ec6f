"""The training loop of the modules in one process: one module, or all of them under the serial transport."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fr_bench.checkpoints.checkpointer import Checkpointer
from fr_bench.errors import Diverged, RunFailed
from fr_bench.measuring.profiling import DeviceLoad, profile_file, record_profile
from fr_bench.methods.base import Method
from fr_bench.modules.meter import LossMeter
from fr_bench.modules.module import BatchResult, Module
from fr_bench.processes.reporter import Reporter
from fr_bench.training.diagnostics import SufficientDirection
from fr_bench.training.evaluation import EvaluationSet, evaluate
from fr_bench.training.extent import Extent
from fr_bench.training.lead import Lead
from fr_bench.training.lockstep import play_in_lockstep
from fr_bench.training.memory import Account, PeakMemory
from fr_bench.transport.link import Batches, ModuleLink
from fr_bench.transport.side import SideChannel

SAME = 1e-9  # relative difference of two sums of the same weights, for the order in which they are added


@dataclass
class Player:
    """A module with its method and its connections.

    Attributes:
        stream: of a GPU, on which the module trains; None for the one that its process has anyway.
    """

    module: Module
    method: Method
    link: ModuleLink
    side: SideChannel
    device: torch.device
    stream: torch.cuda.Stream | None = None

    def on_stream(self) -> AbstractContextManager[Any]:
        """What is done inside is queued behind what the module did, and does not wait for other modules of the
        process."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)


class Trainer:
    """Runs iterations start..num_steps-1.

        for t:  modules ascending   play t     (receive features, forward, send up)
                modules descending  learn t    (gradient from above, foretold or of their own; send down, step)

    In a process of its own a module just alternates the two. There is no barrier between iterations: neighbours
    wait for each other's messages alone. The loop pauses for an evaluation, a diagnostic or a checkpoint, and starts
    again behind a barrier, so that the training clock does not run while another module still does something else.
    """

    def __init__(
        self,
        players: Sequence[Player],
        extent: Extent,
        reporter: Reporter,
        evaluation_sets: Sequence[EvaluationSet],
        images: Batches | None,
        predicted_memory: Sequence[dict[str, int]],
        direction: SufficientDirection | None,
        total: Callable[[Tensor], Tensor],
        *,
        checkpointer: Checkpointer,
        shares_gpu: bool,
    ) -> None:
        """
        Args:
            players: the modules of this process, from the lowest.
            extent, reporter, direction, checkpointer: see their classes.
            evaluation_sets: in the order in which they are evaluated; alike in all processes.
            images: the batches of module 1; None in a process without one.
            predicted_memory: of every module of the run, in the order of their numbers: bytes by category, empty where
                nothing is predicted.
            total: of a tensor over the replicas.
            shares_gpu: whether other modules are on the same GPU.
        """
        self.shares_gpu = shares_gpu
        self.players = players
        self.checkpointer = checkpointer
        self.start = 0  # iterations that a checkpoint has already seen
        self.images = images
        self.predicted_memory = predicted_memory
        self.extent = extent
        self.reporter = reporter
        self.evaluation_sets = evaluation_sets
        self.direction = direction
        self.top = players[-1].module if players[-1].module.is_top else None
        self.meter = LossMeter(players[-1].device, self.top.global_batch_size, total) if self.top else None
        self.in_first_replica = players[0].module.replica == 1  # which evaluates, and tells loss and error, for all
        has_graphs = any(player.module.passes.are_captured for player in players)
        self._peaks = {player.device: PeakMemory(player.device, has_graphs) for player in players}
        self._lead = Lead([player.stream for player in players if player.stream is not None])
        self._to_trace = self._to_profile = range(0)  # known when it is known where the run starts
        self._has_profiled = False
        self._trained_ns = 0  # since the last `time` record
        self._reported_step = 0

    def run(self) -> bool:
        """Trains from the first iteration to the last.

        Returns:
            Whether it got there; if not, the run was asked to stop, and the last checkpoint is that of this moment.
        """
        t, num_modules = self.start, self.players[0].module.num_modules
        self._to_trace = self.extent.to_trace(self.start, num_modules)
        if not self._has_profiled:  # before it was interrupted
            self._to_profile = self.extent.to_profile(self.start, num_modules)
        if t > 0:
            self._finish_step(t)  # what comes after the checkpoint
        while t < self.extent.num_steps:
            if self.direction is not None and self.direction.windows.contains(t):
                self.direction.measure(t)
            self.players[0].side.barrier()
            go_on = self._profile if t in self._to_profile else self._train
            t = go_on(t, self._next_pause(t))
            self._report_trace(t)
            if self.checkpointer.pauses_at(t):
                self._save(t)
                if self.checkpointer.stops_at(t):
                    return False
            self._finish_step(t)
        return True

    def _finish_step(self, step: int) -> None:
        """What there is to do between two stretches, after ``step`` iterations."""
        self._report_direction(step)
        if self.extent.evaluates(step):
            self._refuse_idle(step)
            self._refuse_disagreement()
            self._evaluate(step)
            self._report_memory(step)

    def _refuse_idle(self, step: int) -> None:
        """Raises RunFailed for a module whose method forgets to step: all would look well, and nothing be learned."""
        enough = 2 * self.players[0].module.num_modules  # the longest delay in use is shorter
        num_iterations = step - self.start
        if min(num_iterations, self.extent.steps_per_epoch) < enough:  # what starts anew every epoch may be waiting yet
            return
        for module in (player.module for player in self.players):
            if module.num_updates == 0:
                raise RunFailed(
                    f"module {module.number} made no step in {num_iterations} iterations: its method must call "
                    "self.module.step(t) once an iteration",
                    module.number,
                )

    def _refuse_disagreement(self) -> None:
        """Raises RunFailed where the weights of a module's replicas, or of what its method trains beside it, are no
        longer the same: they were updated with the gradients of each."""
        for module in (player.module for player in self.players):
            if not self._agree_on(module, module.network):
                raise RunFailed(
                    f"the replicas of module {module.k} no longer have the same weights: a method that changes "
                    "gradients between a backward and the step calls self.module.sum_gradients(t) first",
                    module.number,
                )
            if not all([self._agree_on(module, companion) for companion in module.companions]):
                raise RunFailed(
                    f"what the method trains beside module {module.k} no longer has the same weights in all replicas: "
                    "it adds gradients up by self.module.replicas.add_up([...]) before it steps",
                    module.number,
                )

    def _agree_on(self, module: Module, network: nn.Module) -> bool:
        """Whether ``network`` has the same weights in all replicas of ``module``, which ask at the same time."""
        weights = list(network.parameters())
        if module.replicas is None or not weights:
            return True
        own = torch.stack([p.detach().double().sum() for p in weights]).sum()
        mean = module.replicas.total(own) / module.num_replicas
        return not bool((own - mean).abs() > SAME * mean.abs())  # what is not finite is told elsewhere

    def _save(self, step: int) -> None:
        """A checkpoint. Of the records of its step `train`, `method`, `time` and `profile` lie before it."""
        self._check_finite()  # what is not finite is not worth keeping
        parts = [(player.module, player.method, player.link) for player in self.players]
        self.checkpointer.save(step, parts, self.meter, [self.state_dict(index) for index in range(len(parts))])

    def state_dict(self, index: int) -> dict[str, Any]:
        """The loop's own numbers, for a checkpoint of module ``self.players[index]``."""
        return {
            "trained_ns": self._trained_ns,
            "reported_step": self._reported_step,
            "has_profiled": self._has_profiled,
            "direction": None if self.direction is None else self.direction.state_dict(index),
            "peak": self._peaks[self.players[index].device].state_dict(),
            "means": self.players[index].module.means.state_dict(),
        }

    def load_state_dict(self, index: int, state: dict[str, Any]) -> None:
        """Goes on with the numbers of :meth:`state_dict`."""
        self._trained_ns, self._reported_step = state["trained_ns"], state["reported_step"]
        self._has_profiled = state.get("has_profiled", False)  # older checkpoints do not say
        if "peak" in state:  # nor do they
            self._peaks[self.players[index].device].load_state_dict(state["peak"])
        self.players[index].module.means.load_state_dict(state.get("means", {}))  # nor do they
        if self.direction is not None:
            self.direction.load_state_dict(index, state["direction"], self.start)

    def _profile(self, start: int, stop: int) -> int:
        """One stretch under the profiler, which no clock sees; returns the step at which it ended."""
        self._to_profile, self._has_profiled = range(0), True  # once, even if something ends it early
        on_gpu = any(player.device.type == "cuda" for player in self.players)
        with ExitStack() as stack:
            for player in self.players:
                stack.enter_context(player.module.watch.paused())
            self.synchronize()
            with record_profile(on_gpu) as recording:
                self.players[0].side.barrier()  # to start a profiler takes long
                end = self._train(start, stop, is_timed=False)
        file, problem, load = None, {}, DeviceLoad()
        try:
            path, load = recording.write(self.extent.profile_folder / profile_file(self._numbers()))
            file = path.name
        except OSError as error:  # training is worth more than its trace
            problem = {"problem": error.strerror or str(error)}
        # Of the machine, too: on every one GPUs are numbered from 0.
        place = {"module": self._numbers()[0], "device": str(self.players[0].device), "host": socket.gethostname()}
        numbers = {"iterations": end - start, **load.over(end - start)}
        self.reporter.send("profile", step=end, **place, file=file, **problem, **numbers)
        return end

    def _next_pause(self, t: int) -> int:
        """The step after which the loop leaves the training clock: an evaluation, a diagnostic's turn, or a profile's
        begin or end."""
        stop = self.extent.next_evaluation(t)
        if self._to_profile and t < self._to_profile.stop:
            stop = min(stop, self._to_profile.stop if t in self._to_profile else self._to_profile.start)
        if self.direction is None:
            return stop
        windows = self.direction.windows
        return t + 1 if windows.contains(t) else min(stop, windows.next_from(t))

    def _train(self, start: int, stop: int, is_timed: bool = True) -> int:
        """One stretch on the training clock, if it ``is_timed``; returns the step at which it ended, ``stop`` or an
        earlier checkpoint."""
        self.synchronize()  # what was done between two stretches is on no module's stream
        for peak in self._peaks.values():
            peak.begin()
        if is_timed:
            for player in self.players:
                player.module.watch.begin()
            self.reporter.send("stretch_begin", modules=self._numbers())
        since_ns = time.monotonic_ns()
        t = start
        while t < stop:
            if t % self.extent.steps_per_epoch == 0:
                for player in self.players:
                    with player.on_stream():
                        player.module.key_draws("start_epoch", t)
                        player.method.start_epoch()
            result = self._iterate(t)
            self._lead.end_iteration()
            if self.checkpointer.pauses_at(t + 1):
                stop = t + 1
            is_logged = self.extent.logs(t + 1)
            if is_logged or t + 1 == stop:  # nothing is evaluated that has diverged
                self._check_finite()
            if result is not None:
                self._log(t, result, is_logged, num_untimed=0 if is_timed else t + 1 - start)
            if is_logged:
                self._report_method(t + 1)
            if t + 1 == stop:
                self._let_gradients_arrive()
                self.synchronize()
                end_ns = time.monotonic_ns()
                if is_timed:
                    self.reporter.send("stretch_end", modules=self._numbers())
            if not is_timed:
                self._reported_step += 1  # what is reported is a mean over the other iterations
            if t + 1 == stop or self.extent.ends_epoch(t + 1):
                for player in self.players:
                    player.module.watch.settle()  # its times are the device's, and the clock is to be read with them
                now_ns = end_ns if t + 1 == stop else time.monotonic_ns()
                self._trained_ns += now_ns - since_ns if is_timed else 0
                since_ns = now_ns
            if t + 1 == stop:
                for peak in self._peaks.values():  # to look for it takes a while
                    peak.end()
            if self.extent.ends_epoch(t + 1):
                self._report_time(t + 1)
            t += 1
        return stop

    def _iterate(self, t: int) -> BatchResult | None:
        result = None
        self.checkpointer.begin(t)
        for player in self.players:
            self.reporter.enter_iteration(player.module.number, t)
            player.module.watch.tracing = t in self._to_trace
            with player.on_stream():
                player.module.key_draws("play", t)
                player.method.play(t)
        if self.checkpointer.pauses_at(t + 1):
            for player in self.players:
                player.link.keep_gradients()
        for player in reversed(self.players):
            with player.on_stream():
                player.module.key_draws("learn", t)
                result = player.method.learn(t) or result
        return result

    def _let_gradients_arrive(self) -> None:
        """Those that are for the next iteration, where a sender's device has no rest before: all modules are about to
        wait for their devices."""
        for player in self.players:
            if not player.link.gradients_keep_devices_busy:
                continue
            if player.module.k > 1:
                player.side.send_down(torch.tensor(player.link.num_sent))
            if not player.module.is_top:
                num_sent = int(player.side.receive_from_above())
                player.link.expect_gradients(num_sent - player.link.num_received)

    def _check_finite(self) -> None:
        """Raises Diverged for the module and step where it began: what is not finite spreads to the modules below or,
        where no gradients are sent, above."""
        found = []
        for player in self.players:
            try:
                with player.on_stream():
                    player.module.finite.check()
            except Diverged as diverged:
                diverged.spreads_down = player.method.sends_gradients
                found.append(diverged)
        if found:
            raise min(found, key=lambda diverged: diverged.order)

    def _log(self, t: int, result: BatchResult, is_logged: bool, num_untimed: int) -> None:
        """``num_untimed``: of how many iterations up to this one the clock sees nothing."""
        assert self.meter is not None and self.top is not None
        with self.players[-1].on_stream():
            self.meter.add(result)
        if is_logged:
            with self.players[-1].on_stream():
                loss, error = self.meter.take("interval")
            learning_rate = self.top.base_lr * self.top.schedule(t)
            if self.in_first_replica:
                numbers = {"loss": loss, "error": error, "lr": learning_rate}
                self.reporter.send("train", step=t + 1, untimed=num_untimed, **numbers)

    def _report_method(self, step: int) -> None:
        """What the methods measured. Modules that measured nothing say so: records are written in the order of all."""
        for player in self.players:
            with player.on_stream():
                means = player.module.means.take()
            self.reporter.send("method", step=step, module=player.module.number, **means)

    def _report_trace(self, step: int) -> None:
        """Once, at the first pause behind all iterations to trace; nothing if the run is stopped before that."""
        if self._to_trace and (step >= self._to_trace.stop or step == self.extent.num_steps):
            self._to_trace = range(0)
            for player in self.players:
                self.reporter.send_trace(player.module.number, player.module.watch.take_spans())

    def _report_time(self, step: int) -> None:
        num_iterations = step - self._reported_step
        if num_iterations == 0:  # all were profiled
            return
        wall_s = self._trained_ns / 1e9 / num_iterations
        self._reported_step, self._trained_ns = step, 0
        for player in self.players:
            seconds = {name: total / num_iterations for name, total in player.module.watch.take().items()}
            # Modules that share a GPU take turns: what one computes for the other also waits for, in any of its spans.
            if not player.method.sees_waiting or self.shares_gpu:
                del seconds["wait_s"]
            place = {"step": step, "module": player.module.number}
            self.reporter.send("time", **place, iterations=num_iterations, wall_s=wall_s, **seconds)

    def _report_memory(self, step: int) -> None:
        """One accounting pass through all modules: measured beside predicted."""
        accounts = [Account(player.module, player.method) for player in self.players]
        modules, sides = [p.module for p in self.players], [p.side for p in self.players]
        peaks = {device: peak.take() for device, peak in self._peaks.items()}
        t = step - 1
        passes = []
        if self.players[0].method.plays_itself:
            accounts[0].play_iteration(t)
        else:
            passes = play_in_lockstep(modules, sides, self.images, t, lambda index, x: accounts[index].play(x, t))
        for player, account in zip(self.players, accounts, strict=True):
            k = player.module.number
            replicas_bytes = 0 if player.module.replicas is None else player.module.replicas.buffer_bytes
            num_bytes: dict[str, int] = account.take(
                player.link.buffer_bytes + replicas_bytes,
                player.device,
                peaks[player.device],
                alone=len(self.players) == 1,
            )
            predicted = self.predicted_memory[k - 1]
            if predicted:
                num_bytes |= {f"predicted_{category}": value for category, value in predicted.items()}
                num_bytes["predicted"] = sum(predicted.values())
            self.reporter.send("memory", step=step, module=k, device=str(player.device), **num_bytes)
        del passes  # until here the graphs are alive, as before a backward

    def _report_direction(self, step: int) -> None:
        if self.direction is None:
            return
        for k, products in self.direction.finish(step - 1):
            self.reporter.send("direction", step=step, module=k, **products)

    def _evaluate(self, step: int) -> None:
        modules = [player.module for player in self.players]
        sides = [player.side for player in self.players]
        record: dict[str, float] = {}
        if self.in_first_replica:
            for split in self.evaluation_sets:
                record |= evaluate(modules, sides, split) or {}
        if self.meter is None:
            return
        train_loss, train_error = self.meter.take("epoch")
        if self.in_first_replica:
            self.reporter.send("eval", step=step, train_loss=train_loss, train_error=train_error, **record)

    def synchronize(self) -> None:
        """Waits for all that the GPUs of this process were given."""
        for player in self.players:
            if player.device.type == "cuda":
                torch.cuda.synchronize(player.device)

    def _numbers(self) -> list[int]:
        return [player.module.number for player in self.players]
