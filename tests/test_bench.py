"""fr-bench bench: what takes part, what comes out of it, and what is refused before anything starts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness import METHODS, call, run_serial, tiny_config
from matplotlib.colors import to_rgba

from fr_bench.bench import measurement as measuring
from fr_bench.bench import run as run_file
from fr_bench.bench.checkpoints import CheckpointCost, costs_of, ends_by_step, measure_checkpoints, with_checkpoints
from fr_bench.bench.contenders import Contender, crowded, make_contenders
from fr_bench.bench.figure import draw_bench
from fr_bench.bench.measurement import Iteration, Measurement, iterations_of
from fr_bench.bench.rows import CheckpointCosts, Quartiles, compare, make_row
from fr_bench.bench.run import has_limit
from fr_bench.bench.settings import BenchSettings, default_k, make_settings
from fr_bench.bench.simulated import _module_times, simulated_step_s
from fr_bench.bench.table import as_checkpoint_table, as_table
from fr_bench.checkpoints.files import folder_of
from fr_bench.commands.bench import is_on_gpu, main, read_values, with_defaults
from fr_bench.errors import ConfigError, Interrupted, RunFailed
from fr_bench.launching.signal_watch import SignalWatch, watch_signals
from fr_bench.measuring.stopwatch import Span
from fr_bench.records.device_load import load_of

# Its images are made in every process, and whenever something is planned.
SMALL = ["model=mlp", "batch_size=16", "dataset.num_train=64", "dataset.num_test=16"]


def config_of(words: Sequence[str]) -> dict[str, Any]:
    """Stands for Hydra: the tiny config with the overrides that a bench makes."""
    values = dict(word.split("=", 1) for word in words)
    config = tiny_config(values.pop("method"), int(values.pop("k")), "gloo", epochs=10**4)
    return config | {key: int(value) if value.isdecimal() else value for key, value in values.items()}


def contenders(**settings: Any) -> list[Contender]:
    return make_contenders(make_settings(settings), config_of)


def by_label(**settings: Any) -> dict[str, Contender]:
    return {each.label: each for each in contenders(**settings)}


# Who takes part


def test_every_method_runs_with_every_k_beside_bp_alone_and_over_as_many_modules() -> None:
    assert list(by_label(methods=["fr", "ddg"], k=[2, 3])) == [
        "bp K=1",
        "bp K=2",
        "bp K=3",
        "fr K=2",
        "fr K=3",
        "ddg K=2",
        "ddg K=3",
    ]


def test_settings_behind_a_name_are_its_own() -> None:
    found = by_label(methods=["fr", "fr partition=auto"], k=[2])
    assert found["fr K=2"].plan.config["partition"] == "equal"
    assert found["fr partition=auto K=2"].plan.config["partition"] == "auto"


def test_the_plain_loop_is_one_process_and_a_pipeline_tries_the_micro_batches_that_fit() -> None:
    found = by_label(methods=["plain", "1f1b"], k=[2], microbatches=[1, 2, 3, 4])  # a batch of 8: 6 does not divide it
    tried = [f"1f1b K=2 M={number}" for number in (2, 4, 8)]
    assert [label for label in found if not label.startswith("bp")] == ["plain K=1", *tried]
    assert len(found["1f1b K=2 M=2"].cuts) == 1


def test_an_interleaved_pipeline_has_two_stages_a_process() -> None:
    (found,) = (each for each in contenders(methods=["interleaved"], k=[2], microbatches=[1]) if each.is_peer)
    assert len(found.cuts) == 3


def test_a_method_runs_long_enough_for_the_pipe_to_fill_before_the_clock_starts() -> None:
    plan = by_label(methods=["fr"], k=[3], warmup=2, steps=4)["fr K=3"].plan
    assert (plan.num_steps, plan.config["trace"]) == (2 + 2 + 4, 2 + 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ["fr"], "k": [9]}, "in bench.methods, .* with K=9: k=9: the model has only"),
        ({"methods": ["fr transport=serial"], "k": [2]}, "'fr transport=serial' with K=2: transport=serial"),
        ({"methods": ["ddp"], "k": [3]}, "batch_size=8: cannot be shared equally by 3"),
        ({"methods": ["1f1b"], "k": [3]}, "none of K times bench.microbatches"),
        ({"methods": ["ddp precision=bf16"], "k": [2]}, "this peer runs in fp32 or fp64"),
        ({"methods": ["ddp replicas=2"], "k": [2]}, "'ddp replicas=2' with K=2: replicas: are of methods' modules"),
        ({"methods": ["plain clip_norm=1"], "k": [1]}, "'plain clip_norm=1' with K=1: clip_norm: the peers do without"),
        (
            {"methods": ["plain method.checkpoint_activations=true"], "k": [1]},
            "method.checkpoint_activations: the peers do without, as they are",
        ),
        (
            {"methods": ["fr"], "k": [2], "steps": 10**5},
            r"epochs=10000: with 5 steps in each that is less than the 1000\d\d",
        ),
    ],
)
def test_what_cannot_run_is_said_before_anything_does(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        contenders(**settings)


def test_how_many_processes_need_more_cores_than_there_are_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    found = contenders(methods=["fr"], k=[1, 2, 3])
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    assert (crowded(found) or "").startswith("3 processes and more with threads=1 have more threads")
    assert (crowded(contenders(methods=["fr replicas=2"], k=[2])) or "").startswith("4 processes")
    some = contenders(methods=["bp", "plain threads=4", "fr threads=2", "fr"], k=[1, 2])
    some_crowd = "2 processes and more with threads=2, 1 process and more with threads=4 have more threads"
    assert (crowded(some) or "").startswith(some_crowd), "one thread each is not too many"
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2})
    assert crowded(found) is None


# On a GPU


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what only asks whether it is there."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: True)


def config_on_gpu(words: Sequence[str]) -> dict[str, Any]:
    return config_of(["device=cuda", "transport=auto", *words])


def on_gpu(**settings: Any) -> dict[str, Contender]:
    made = make_settings({"k": [1, 2], **settings}, on_gpu=True)
    return {each.label: each for each in make_contenders(made, config_on_gpu)}


def test_a_gpu_has_defaults_of_its_own_which_yield_to_what_is_set() -> None:
    settings = make_settings({"steps": 5}, on_gpu=True)
    assert (settings.methods, settings.k) == (["plain", "bp", "dni", "ddg", "fr"], [1, 2, 4])
    assert (settings.rounds, settings.warmup, settings.steps, settings.profile) == (1, 10, 5, 3)
    assert make_settings({}).profile == 0
    assert [is_on_gpu(device) for device in ("cuda", "cpu")] == [True, False]


@pytest.mark.usefixtures("one_gpu")
def test_modules_on_one_gpu_share_it_in_processes_or_in_one() -> None:
    found = on_gpu(methods=["plain precision=tf32", "plain precision=bf16", "fr", "fr transport=serial"])
    assert list(found) == [
        "bp K=1", "bp K=2", "plain precision=tf32 K=1", "plain precision=bf16 K=1", "fr K=2", "fr transport=serial K=2",
    ]  # fmt: skip
    assert [found[label].plan.transport for label in ("fr K=2", "fr transport=serial K=2")] == ["ipc", "serial"]
    assert [each.shares_gpu for each in found.values()] == [False, True, False, False, True, True]
    assert [has_limit(each) for each in found.values()] == [False] * 6
    assert crowded(list(found.values())) is None
    plan = found["fr K=2"].plan
    assert (plan.config["max_steps"], plan.config["trace"], plan.config["profile"]) == (1 + 10 + 30 + 3, 10 + 30, 3)
    assert [found[label].num_processes for label in ("fr K=2", "fr transport=serial K=2", "bp K=1")] == [2, 1, 1]


@pytest.mark.usefixtures("one_gpu")
def test_the_plain_loop_has_no_cuda_graphs() -> None:
    with pytest.raises(ConfigError, match="cuda_graphs=true: the peers run as they are"):
        on_gpu(methods=["plain cuda_graphs=true"])


@pytest.mark.usefixtures("one_gpu")
@pytest.mark.parametrize("peer", ["ddp", "1f1b"])
def test_a_peer_that_needs_a_gpu_a_process_is_refused(peer: str) -> None:
    with pytest.raises(ConfigError, match=f"'{peer}' with K=2: device=cuda: {peer} needs a GPU for each"):
        on_gpu(methods=[peer])


@pytest.mark.usefixtures("one_gpu")
def test_on_a_shared_gpu_nothing_is_made_of_waiting_and_the_idle_share_is_that_of_a_profile() -> None:
    found = on_gpu(methods=["plain", "fr transport=serial"])
    lower, top = {"play": 0.5, "wait gradient": 0.25}, {"play": 0.5, "backward": 0.25}
    rows = [
        make_row(found["plain K=1"], [replace(measurement(2.0), device_busy_s=1.5, num_kernels=900.0)]),
        make_row(found["bp K=1"], [replace(measurement(1.0, top), device_busy_s=1.25, num_kernels=1000.0)]),
        make_row(found["bp K=2"], [measurement(1.5, lower, top)]),
        make_row(
            found["fr transport=serial K=2"],
            [replace(measurement(1.25, lower, top), device_busy_s=busy) for busy in (1.0, 0.5)],
        ),
    ]
    compare(rows)
    plain, single, _, fr = rows
    assert (plain.idle_share, single.idle_share, fr.idle_share) == (0.25, 0.0, pytest.approx(0.4))
    assert (plain.num_kernels, fr.device_busy_s, fr.num_kernels) == (900.0, 0.75, None)
    assert (fr.speedup_vs_plain, fr.speedup_vs_single, fr.speedup_vs_locked) == pytest.approx((1.6, 0.8, 1.2))
    assert fr.shares_gpu and fr.busy_s == [0.5, 0.75]
    assert [fr.limit, fr.efficiency, fr.waiting_share, fr.wait_s, simulated_step_s(fr)] == [None] * 5
    heading, _, *lines = as_table(rows).splitlines()
    assert "GPU idle" in heading and "over plain" in heading and "limit" not in heading and "waiting" not in heading
    assert "25 %" in lines[0] and "1.60" in lines[-1]
    assert "GPU idle" not in as_table([replace(row, idle_share=None) for row in rows])
    assert " 12346 " in as_table([replace(plain, images_per_s=12345.6)])
    assert json.loads(json.dumps(fr.as_json()))["idle_share"] == fr.idle_share
    assert draw_bench(rows, "on a GPU").figure.axes


@pytest.mark.usefixtures("one_gpu")
def test_of_processes_that_take_turns_on_a_gpu_nobody_knows_how_long_it_is_idle() -> None:
    found, phases = on_gpu(methods=["fr", "fr transport=serial"]), [{"play": 0.5}] * 2
    rows = {
        label: make_row(found[label], [replace(measurement(1.0, *phases), device_busy_s=0.75, num_kernels=9.0)])
        for label in ("fr transport=serial K=2", "fr K=2")
    }
    assert [row.idle_share for row in rows.values()] == [0.25, None]
    assert [row.device_busy_s for row in rows.values()] == [0.75, 0.75]


def test_the_busy_time_of_a_gpu_is_that_of_all_its_processes() -> None:
    def record(device: str, busy_s: float | None) -> dict[str, Any]:
        return {"device": device, "busy_s": busy_s, "num_kernels": None if busy_s is None else 10.0}

    assert load_of([record("cuda:0", 0.25), record("cuda:0", 0.5), record("cuda:1", 0.625)]) == (0.75, 30.0)
    assert load_of([record("cpu", None)]) == load_of([]) == (None, None)


# Settings


def test_values_are_read_in_hydras_grammar() -> None:
    words = ["bench.k=[1,2]", "bench.methods=[bp,'fr partition=equal']", "bench.rounds=5"]
    assert read_values(words) == {"k": [1, 2], "methods": ["bp", "fr partition=equal"], "rounds": 5}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("bench.rounds=0", "bench.rounds=0: must be an integer of at least 1"),
        ("profile=2", "profile: is set for each that is compared"),
        ("bench.k=1,2", "bench.k=1,2: a plain KEY=VALUE is meant"),
        ("bench.methods=[fr", "is not KEY=VALUE as Hydra reads it"),
        ("bench.methods=[fx]", "'fx': there is no method or peer 'fx'. Did you mean 'fr'.+ interleaved, plain, "),
        ("bench.methods=[interleave]", "Did you mean 'interleaved'"),
        ("bench.methods=['fr model=resnt20']", "model=resnt20: there is no such model. Did you mean 'resnet20'"),
        ("method=fr", "method: is set for each that is compared"),
        ("k=2", "k: is set for each that is compared"),
        ("max_time=3", "max_time: belongs to fr-bench train; a bench runs here, and all of it at once"),
        ("cluster=slurm", "cluster: belongs to fr-bench train"),
        ("+bench.rounds=3", r"\+bench.rounds=3: a plain KEY=VALUE is meant"),
        ("~simulate.k", "~simulate.k: a plain KEY=VALUE is meant"),
        ("optimizer.lrr=3", "optimizer.lrr"),
        ("device=cuda", "device=cuda"),
    ],
)
def test_a_mistake_is_named_with_what_is_allowed(word: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        main([word, "model=mlp", "dataset=digits", f"run_dir={tmp_path / 'run'}"])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("bench.rouns=3", "bench.rouns: unknown. Did you mean 'rounds'"),
        ("bench.rounds=two", "bench.rounds=two: must be an integer"),
        ("bench.checkpoints=true", "bench.checkpoints=True: must be an integer of at least 0"),
        ("bench.profile=-1", "bench.profile=-1: must be an integer of at least 0"),
        ("bench.profile=2", "bench.profile=2: tells how long a GPU is idle, and this bench is on the CPU"),
        ("bench.warmup=0", "bench.warmup=0: must be an integer of at least 1"),
        ("bench.k=2", "bench.k=2: must be a list"),
        ("bench.k=[]", "must be a list with something in it"),
        ("bench.k=[two]", "bench.k=two: must be an integer"),
        ("bench.methods=[bp,[fr]]", "must be a list of names"),
        ("bench.methods=['fr k=3']", "in bench.methods, 'fr k=3': k: is set for each that is compared"),
        ("bench.methods=[bp,'fr ++method=ddg']", r"'fr \+\+method=ddg': method: is set for each"),
        ("bench.methods=['fr seed=1 max_steps=3']", "max_steps: is set for each"),
        ("bench.methods=['fr dry_run=true']", "dry_run: belongs to fr-bench train"),
        ("bench.methods=['fr resume=mine']", "resume: belongs to fr-bench train"),
        ("bench.methods=['fr run_dir=mine']", "run_dir: is of the bench as a whole"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        make_settings(read_values([word]))


def test_a_folder_is_taken_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []
    monkeypatch.setattr("fr_bench.bench.run.run_bench", lambda *arguments: folders.append(arguments[-1]) or 0)
    assert main([f"run_dir={tmp_path}/k=1,2", "model=mlp"]) == 0
    assert folders == [tmp_path / "k=1,2"]


def test_what_the_command_line_sets_is_not_set_again() -> None:
    words = with_defaults(["dataset=digits", "threads=2"])
    assert [word for word in words if word.startswith(("dataset=", "threads="))] == ["dataset=digits", "threads=2"]
    assert "batch_size=64" in words


def test_k_goes_as_far_as_there_are_cores() -> None:
    assert [default_k(cores) for cores in (1, 2, 3, 4, 64)] == [[1], [1, 2], [1, 2], [1, 2, 4], [1, 2, 4]]


# Arithmetic


def spans(*parts: tuple[str, int, int]) -> list[Span]:
    return [Span(name, start * 10**9, end * 10**9, 0) for name, start, end in parts]


def test_an_iteration_lasts_from_step_to_step_and_holds_what_happened_between() -> None:
    recorded = spans(("play", 1, 3), ("step", 4, 5), ("play", 6, 9), ("wait gradient", 9, 10), ("step", 11, 12))
    first, second = iterations_of(recorded)
    assert (first.seconds, first.phases_s) == (4, {"play": 2, "step": 1})
    assert (second.seconds, second.phases_s) == (7, {"play": 3, "wait gradient": 1, "step": 1})


class Told:
    """Stands for the processes of a contender, of which nothing but their events is seen."""

    def __init__(self, *events: dict[str, Any]) -> None:
        self._events = events

    def __enter__(self) -> Told:
        return self

    def __exit__(self, *_: object) -> None: ...

    def events(self, _: object) -> Sequence[dict[str, Any]]:
        return self._events


@pytest.mark.parametrize("label", ["fr K=2", "ddp K=2"])
def test_what_is_timed_is_the_slowest_one_once_it_is_warm(
    label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words: dict[str, Any] = {"methods": ["fr", "ddp"], "k": [2], "warmup": 2, "steps": 2}
    events: list[dict[str, Any]] = []
    for module, ends in ((1, (9, 50, 52, 54)), (2, (8, 40, 43, 46))):
        ends_ns = [end * 10**9 for end in ends]
        steps = [("step", start, end, 0) for start, end in zip([0, *ends_ns], ends_ns, strict=False)]
        events.append({"event": "trace", "module": module, "spans": steps})
        events.append({"event": "peer", "module": module, "ends_ns": ends_ns, "peak": module})

    def told(*_: object, **__: object) -> Told:
        return Told(*(event for event in events if event["event"] == ("trace" if label[0] == "f" else "peer")))

    told.of_plan = told  # type: ignore[attr-defined]
    monkeypatch.setattr(measuring, "Supervisor", told)
    found = measuring.measure(by_label(**words)[label], make_settings(words), tmp_path / "run", SignalWatch())
    assert found.step_s == [3, 3]


def measurement(step_s: float, *phases: dict[str, float]) -> Measurement:
    modules = [[Iteration(step_s, each)] * 4 for each in phases]
    return Measurement([step_s] * 4, modules, [2**20] * max(1, len(phases)), [2**10] * len(phases))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_one_step_in_an_iteration_and_ends_it_with_that(method: str, tmp_path: Path) -> None:
    traces = run_serial(tiny_config(method, 3, trace=4), tmp_path).of("trace")
    assert [event["module"] for event in traces] == [1, 2, 3]
    for event in traces:
        names = [name for name, *_ in event["spans"]]
        assert names.count("step") == 4 and names[-1] == "step"


def test_a_method_is_compared_with_bp_under_the_same_switches() -> None:
    found = contenders(methods=["bp", "fr", "ddp"], k=[2])
    words = [
        "bp",
        "bp compile=true",
        "ddp compile=true",
        "fr",
        "fr compile=true",
        "fr transport=ipc compile=true",
        "fr precision=bf16",
    ]
    times = {"bp": 4.0, "bp compile=true": 3.0}
    by_k = {(each.method, each.k): each for each in found}
    rows = [
        make_row(replace(by_k[word.split()[0], k], words=word), [measurement(times.get(word, 2.0) / (1 + (k == 1)))])
        for k in (1, 2)
        for word in words
        if (word.split()[0], k) in by_k
    ]
    compare(rows)
    found_ups = {(row.words, row.k): (row.speedup_vs_single, row.speedup_vs_locked) for row in rows}
    assert found_ups["fr", 2] == (1.0, 2.0)
    assert found_ups["fr compile=true", 2] == found_ups["fr transport=ipc compile=true", 2] == (0.75, 1.5)
    assert found_ups["fr precision=bf16", 2] == (None, None)
    assert found_ups["bp compile=true", 2] == pytest.approx((2.0 / 3.0, 4.0 / 3.0))
    assert found_ups["ddp compile=true", 2] == (1.0, 2.0)  # a peer with BP as it is


def test_speed_ups_are_ratios_of_medians_efficiency_and_waiting_shares_of_all_the_time() -> None:
    names = {each.label: each for each in contenders(methods=["plain", "bp", "fr"], k=[2])}
    lower, top = {"play": 1.0, "replay": 1.0, "backward": 2.0, "wait gradient": 1.0}, {"play": 1.5, "backward": 3.5}
    rows = [
        make_row(names["plain K=1"], [measurement(9.0)]),
        make_row(names["bp K=1"], [measurement(10.0, {"play": 4.0, "backward": 6.0})]),
        make_row(names["bp K=2"], [measurement(11.0, {"play": 2.0, "backward": 3.0}, {"play": 2.0, "backward": 3.0})]),
        make_row(names["fr K=2"], [measurement(6.0, lower, top), measurement(5.0, lower, top)]),
    ]
    compare(rows)
    fr = rows[-1]
    assert fr.step_time_s == Quartiles(5.0, 5.5, 6.0) and fr.num_samples == 8
    assert fr.images_per_s == 8 / 5.5
    assert (fr.speedup_vs_single, fr.speedup_vs_locked, fr.speedup_vs_plain) == pytest.approx(
        (10 / 5.5, 11 / 5.5, 9 / 5.5)
    )
    assert (fr.limit, fr.efficiency) == pytest.approx((11 / 5, 5 / 5.5))  # the top is the busiest: 5 seconds
    assert fr.busy_s == [4.0, 5.0] and fr.waiting_share == [1 / 5.5, 0.0]
    assert rows[0].limit is None and rows[2].limit is None and rows[1].efficiency is None
    assert rows[1].speedup_vs_locked is None and rows[2].speedup_vs_locked == 1
    pipeline = contenders(methods=["gpipe"], k=[2])[-1]
    assert make_row(pipeline, [measurement(1.0)]).num_microbatches == pipeline.num_microbatches is not None
    # The lower module is done with its own work after 4 seconds, the top after 5: that is the pace. Locked: one by one.
    # (The half second that neither computed nor waited in is part of their work.)
    assert simulated_step_s(fr) == pytest.approx(5.5) and simulated_step_s(rows[0]) is None
    assert simulated_step_s(rows[1]) == pytest.approx(10.0)
    replicas = by_label(methods=["bp replicas=2"], k=[1])["bp replicas=2 K=1"]
    row = make_row(replicas, [measurement(6.0, {"play": 2.0, "backward": 3.0}, {"play": 2.0, "backward": 3.0})])
    assert row.replicas == 2 and simulated_step_s(row) is None
    table = as_table(rows)
    assert "| 2.00" in table and table.count("\n") == 5


def test_the_uncontended_limit_is_over_a_network_that_does_not_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six equal blocks, of which module 1 has three: a second a pass, and two a backward."""
    costs = SimpleNamespace(costs=lambda first, last, k: (last - first) * (4.0 if k == 1 else 3.0))
    monkeypatch.setattr(run_file, "Balance", lambda *_, **__: costs)
    found = by_label(methods=["fr partition=equal"], k=[2])["fr partition=equal K=2"]
    assert run_file.limit_uncontended(found) == 6 * 3 / (3 * 4)


def test_the_uncontended_limit_of_replicas_is_that_of_modules_with_a_share_of_the_batch_over_bp_with_all_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An image of one of six blocks takes a second a pass, and two a backward."""
    parts = [SimpleNamespace(costs=lambda first, last, k, b=b: b * (last - first) * (4.0 if k == 1 else 3.0))
             for b in range(9)]  # fmt: skip
    monkeypatch.setattr(run_file, "Balance", lambda config, *_, **__: parts[config["batch_size"]])
    words = "fr partition=equal replicas=2"
    found = by_label(methods=[words], k=[2])[f"{words} K=2"]
    assert run_file.limit_uncontended(found) == (8 * 6 * 3) / (4 * 3 * 4)


def test_what_is_timed_for_the_limit_is_not_said_to_be_for_the_cuts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = by_label(methods=["fr partition=equal"], k=[2])["fr partition=equal K=2"]
    assert run_file.limit_uncontended(found)
    assert capsys.readouterr().err.startswith("limit, uncontended: timing the blocks of tiny on cpu ...\n")


def test_speed_ups_of_a_row_with_a_batch_of_its_own_are_of_images() -> None:
    found = by_label(methods=["plain", "bp", "bp batch_size=16", "fr batch_size=16"], k=[2])
    rows = [make_row(found[label], [measurement(2.0)]) for label in ("plain K=1", "bp K=1", "bp K=2")]
    rows += [make_row(found[f"bp batch_size=16 K={k}"], [measurement(3.0)]) for k in (1, 2)]
    rows.append(make_row(found["fr batch_size=16 K=2"], [measurement(1.5)]))
    compare(rows)
    bp, fr = rows[-2:]
    assert (bp.images_per_s, bp.speedup_vs_single, bp.speedup_vs_locked) == pytest.approx((16 / 3, 4 / 3, 4 / 3))
    assert (fr.speedup_vs_plain, fr.speedup_vs_single, fr.speedup_vs_locked) == pytest.approx((8 / 3, 2, 2))


def test_sending_is_no_computing_and_phases_are_medians_over_the_rounds() -> None:
    lower, top = {"play": 3.0, "send features": 0.5}, {"play": 1.0}
    rounds = [measurement(6.0, lower | {"play": play_s}, top) for play_s in (3.0, 1.0, 2.0)]
    row = make_row(by_label(methods=["fr"], k=[2])["fr K=2"], rounds)
    assert row.phases_s == [{"play": 2.0, "send features": 0.5}, {"play": 1.0}]
    assert (row.busy_s, row.send_s, row.efficiency) == ([2.0, 1.0], [0.5, 0.0], 2 / 6)


def test_a_long_iteration_makes_no_share_exceed_one() -> None:
    """A share of a median step could be above one then."""
    lower = [Iteration(2.0, {"play": 1.5, "wait gradient": 0.5})] * 2 + [Iteration(12.0, {"wait gradient": 12.0})]
    top = [Iteration(2.0, {"play": 2.0})] * 2 + [Iteration(12.0, {"play": 12.0})]
    row = make_row(by_label(methods=["fr"], k=[2])["fr K=2"], [Measurement([2.0, 2.0, 12.0], [lower, top], [1, 1])])
    assert row.step_time_s.median == 2.0 and row.busy_s == [1.5, 2.0] and row.wait_s == [0.5, 0.0]
    assert (row.waiting_share, row.efficiency) == ([13 / 16, 0.0], 1.0)


def test_the_figure_has_the_rows_of_a_method_together_and_explains_its_lines() -> None:
    words = ["plain", "ddp", "fr", "bp replicas=2", "bp"]
    rows = [make_row(each, [measurement(2.0), measurement(3.0)]) for each in contenders(methods=words, k=[1, 2])]
    compare(rows)
    figure = draw_bench(rows, "all of them").figure
    (axes,), (legend,) = figure.axes, figure.legends
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [
        "FR, K = 2", "BP, K = 1", "BP replicas=2, K = 1", "BP, K = 2", "BP replicas=2, K = 2", "Plain, K = 1",
        "DDP, K = 2",
    ]  # fmt: skip
    assert [text.get_text() for text in legend.get_texts()] == ["quartiles"]
    lower, top = {"play": 1.0, "wait gradient": 1.0}, {"play": 2.0}
    rows = [
        make_row(each, [measurement(2.0 + (each.method == "bp"), lower, top), measurement(3.0, lower, top)])
        for each in contenders(methods=["bp", "fr"], k=[2])
    ]
    compare(rows)
    rows[1].words, rows[1].speedup_vs_single = "fr optimizer.momentum=0", None  # no BP without momentum is beside it
    [label] = draw_bench(rows[:2], "without one").figure.axes[0].get_yticklabels()
    assert label.get_text() == "BP, K = 1"
    rows[0].words = "fr optimizer.weight_decay=0.001 partition=equal"
    [label] = draw_bench(rows[:1], "a long name").figure.axes[0].get_yticklabels()
    assert label.get_text() == "FR optimizer.weight_decay=0.001\npartition=equal, K = 1"
    rows[0].words, rows[1].words, rows[1].speedup_vs_single = "bp", "fr", 1.0
    figure = draw_bench(rows, "with a limit").figure
    figure.draw_without_rendering()
    height_pt = figure.axes[0].get_window_extent().height / figure.dpi * 72
    assert height_pt > 1.5 * len(rows) * figure.axes[0].xaxis.label.get_size(), "the bars have room"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["quartiles", "limit"]
    quartiles = figure.legends[0].get_lines()[0]
    (drawn,) = {
        (tuple(bars.get_linewidth()), tuple(bars.get_color()[0]))
        for bars in figure.axes[0].collections
        if bars.get_segments()[0][0][1] == bars.get_segments()[0][1][1]  # horizontal; a limit is upright
    }
    assert drawn == ((quartiles.get_linewidth(),), to_rgba(quartiles.get_color()))


def test_in_the_figure_names_of_any_length_leave_room_for_bars_and_each_other() -> None:
    rows = [make_row(each, [measurement(2.0)]) for each in contenders(methods=["plain", "bp"], k=[1, 2])]
    compare(rows)
    rows[0].words = "plain " + " ".join(f"optimizer.the_{at}_of_its_settings=0.001" for at in range(4))
    rows[1].words = "bp method.checkpoint_activations=true"
    figure = draw_bench(rows, "long names").figure
    figure.draw_without_rendering()
    (axes,) = figure.axes
    names = axes.get_yticklabels()
    assert names[0].get_text() == "BP checkpoint_activations=true,\nK = 1"
    assert names[-1].get_text().count("\n") == 5
    extents = sorted((name.get_window_extent() for name in names), key=lambda extent: -extent.y0)
    assert all(above.y0 > below.y1 for above, below in itertools.pairwise(extents))
    words = axes.xaxis.label.get_window_extent()
    assert figure.bbox.x0 <= words.x0 and words.x1 <= figure.bbox.x1, "what the bars are is within the figure"
    height_pt = axes.get_window_extent().height / figure.dpi * 72
    assert height_pt < 2.5 * axes.xaxis.label.get_size() * sum(name.get_text().count("\n") + 1 for name in names)


def test_an_iteration_has_ended_when_the_slowest_module_is_done_with_it() -> None:
    lower = [Span("step", 0, 10, 3), Span("play", 10, 12, 5), Span("step", 12, 20, 4), Span("step", 20, 30, 5)]
    upper = [Span("step", 0, 15, 3), Span("step", 15, 21, 4)]
    assert ends_by_step([lower, upper]) == {4: 15, 5: 21}


def ends_with_delays(num_steps: int, step_ns: int, delays_ns: dict[int, int]) -> dict[int, int]:
    """After how many iterations it was when, if the iteration after such a step took so much longer."""
    return {
        step: step * step_ns + sum(delay for at, delay in delays_ns.items() if step > at)
        for step in range(1, num_steps + 1)
    }


def test_a_checkpoint_costs_what_the_iterations_around_it_take_longer_than_those_beside_them() -> None:
    second = 10**9
    # Checkpoints after 10, 20 and, to end the run, 30 steps of 2 s; half a second later in the first step after them,
    # and in the second, in which they become whole, 0.25 s more.
    after_ns = ends_with_delays(30, 2 * second, {10: second // 2, 11: second // 4, 20: second // 2, 21: second // 4})
    whole_ns = {10: after_ns[10] + 3 * second, 20: after_ns[20] + 3 * second, 30: after_ns[30] + second}
    begins_ns = [0, *(after_ns[step] + second // 8 for step in (10, 20))]
    costs = costs_of(after_ns, 3, begins_ns, whole_ns, {10: 100, 20: 120}, margin=2)
    assert costs == [
        CheckpointCost(extra_s=0.75, pause_s=0.125, whole_after_s=3.0, num_bytes=100),
        CheckpointCost(extra_s=0.75, pause_s=0.125, whole_after_s=3.0, num_bytes=120),
    ]
    # One that is not whole before the next stretch begins cannot be told from it; the other has one quiet neighbour.
    whole_ns[10] = after_ns[19]
    assert costs_of(after_ns, 3, begins_ns, whole_ns, {20: 120}, margin=2) == []
    whole_ns[10] = after_ns[16]
    assert [cost.num_bytes for cost in costs_of(after_ns, 3, begins_ns, whole_ns, {10: 1, 20: 2}, margin=2)] == [1, 2]


def test_the_share_is_that_of_a_minute_and_stands_in_a_table_of_its_own() -> None:
    bp, fr = (
        make_row(by_label(methods=["fr"], k=[2])[label], [measurement(1.0), measurement(2.0)])
        for label in ("bp K=2", "fr K=2")
    )
    assert as_checkpoint_table([bp, fr]) == ""
    fr.checkpoint = CheckpointCosts.of([CheckpointCost(extra, 0.1, 0.9, 2**20) for extra in (0.3, 0.2, 0.7)])
    assert fr.checkpoint.extra_s == Quartiles(0.25, 0.3, 0.5) and fr.checkpoint.num_samples == 3
    assert fr.checkpoint.share_at_one_a_minute == 0.3 / 60
    table = as_checkpoint_table([bp, fr])
    assert "| 0.50 %" in table and table.count("\n") == 2 and "checkpoint" not in as_table([bp, fr])
    assert CheckpointCosts.of([CheckpointCost(0.3, 0.1, 0.9, 1)]).extra_s == Quartiles(0.3, 0.3, 0.3)


# The real thing


def test_what_is_accounted_for_is_all_that_a_module_holds(tmp_path: Path) -> None:
    """The buffers of messages, too."""
    settings = make_settings({"methods": ["fr"], "k": [2], "warmup": 1, "steps": 2})
    (fr,) = (each for each in make_contenders(settings, config_of) if each.label == "fr K=2")
    found = measuring.measure(fr, settings, tmp_path / "run", SignalWatch()).accounted_bytes
    for num_bytes, predicted in zip(found, fr.plan.predicted_memory, strict=True):
        assert num_bytes == sum(predicted.values())


def test_a_bench_leaves_a_table_a_file_and_a_figure(tmp_path: Path) -> None:
    command = ["bench", *SMALL, "bench.k=[2]", "bench.rounds=1"]
    command += [
        "bench.steps=3",
        "bench.methods=[plain,fr,1f1b]",
        "bench.microbatches=[1,2]",
        f"run_dir={tmp_path / 'b'}",
    ]
    result = call(tmp_path, *command)
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "b" / "bench.json").read_text())
    rows = {(row["method"], row["k"]): row for row in content["rows"]}
    assert list(rows) == [("bp", 1), ("bp", 2), ("plain", 1), ("fr", 2), ("1f1b", 2)]
    for row in rows.values():
        q1, median, q3 = (row["step_time_s"][name] for name in ("q1", "median", "q3"))
        assert 0 < q1 <= median <= q3 and row["num_samples"] == 3
        assert row["images_per_s"] == pytest.approx(16 / median)
        assert row["speedup_vs_single"] == pytest.approx(rows["bp", 1]["step_time_s"]["median"] / median)
        assert len(row["peak_memory"]) == row["k"] and min(row["peak_memory"]) > 2**20
    fr, pipeline = rows["fr", 2], rows["1f1b", 2]
    assert fr["efficiency"] > 0 and fr["limit"] == pytest.approx(fr["speedup_vs_locked"] / fr["efficiency"])
    assert fr["limit_uncontended"] > 0 and min(fr["accounted_memory"]) > 0
    assert set(pipeline["tried_microbatches"]) == {"2", "4"} and str(pipeline["num_microbatches"]) in {"2", "4"}
    assert content["failures"] == [] and content["env"]["versions"]["torch"] == torch.__version__
    assert result.stdout.count("round ") == 6  # both numbers of micro-batches
    assert (tmp_path / "b" / "bench.png").stat().st_size > 1000 and (tmp_path / "b" / "bench.pdf").exists()
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["bench.json", "bench.pdf", "bench.png"]


def test_checkpoints_are_taken_and_told_beside_the_table(tmp_path: Path) -> None:
    command = ["bench", *SMALL, "bench.k=[1]", "bench.rounds=1"]
    command += ["bench.steps=2", "bench.methods=[bp]", "bench.checkpoints=2", f"run_dir={tmp_path / 'b'}"]
    result = call(tmp_path, *command)
    assert result.returncode == 0, result.stderr
    (bp,) = json.loads((tmp_path / "b" / "bench.json").read_text())["rows"]
    assert bp["checkpoint"]["num_samples"] in (1, 2) and bp["checkpoint"]["num_bytes"] > 2**10
    assert bp["checkpoint"]["share_at_one_a_minute"] == bp["checkpoint"]["extra_s"]["median"] / 60
    assert "bp K=1: a checkpoint costs" in result.stdout and "at one a minute" in result.stdout
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["bench.json", "bench.pdf", "bench.png"]


def test_a_checkpoint_over_several_modules_is_measured_where_it_is_taken(tmp_path: Path) -> None:
    plan = by_label(methods=["fr"], k=[2])["fr K=2"].plan
    settings = make_settings({"checkpoints": 2, "steps": 2, "k": [2]})
    costs = measure_checkpoints(plan, settings, 0.01, tmp_path / "run", SignalWatch())
    assert len(costs) in (1, 2) and not (tmp_path / "run").exists()
    for cost in costs:
        assert cost.pause_s > 0 and cost.whole_after_s > 0 and cost.num_bytes > sum(plan.num_parameters) * 4


def test_checkpoints_that_cannot_be_written_have_no_cost(tmp_path: Path) -> None:
    plan = by_label(methods=["fr"], k=[2])["fr K=2"].plan
    settings = make_settings({"checkpoints": 1, "steps": 2, "k": [2]})
    every = with_checkpoints(plan, settings, 1.0).config["checkpoint"]["every"]
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    folder_of(tmp_path / "run" / "checkpoints", every).touch()
    with pytest.raises(RunFailed, match=f"the checkpoint after step {every} could not be written"):
        measure_checkpoints(plan, settings, 1.0, tmp_path / "run", SignalWatch())


def test_one_that_fails_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    command = ["bench", *SMALL, "bench.k=[1]", "bench.rounds=1"]
    command += ["bench.steps=2", "bench.methods=[bp,'bp optimizer.lr=1e30']", f"run_dir={tmp_path / 'b'}"]
    result = call(tmp_path, *command)
    assert result.returncode == 1 and "bp optimizer.lr=1e30 K=1: diverged at step" in result.stderr
    content = json.loads((tmp_path / "b" / "bench.json").read_text())
    assert [row["words"] for row in content["rows"]] == ["bp"]
    assert [(each["method"], each["k"]) for each in content["failures"]] == [("bp optimizer.lr=1e30", 1)]


def test_one_with_more_settings_than_a_folders_name_has_room_for_is_measured(tmp_path: Path) -> None:
    words = f"bp optimizer.lr=0.0{'1' * 250}"
    (found,) = contenders(methods=[words], k=[1])[1:]
    bench = run_file.Bench(make_settings({"rounds": 1, "steps": 2}), [run_file.Entry(found)], tmp_path)
    bench.run(SignalWatch())
    assert [row.words for row in bench.rows()] == [words]


def test_so_is_one_whose_mistake_only_its_modules_find(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure_some(contender: Contender, *_: Any) -> Measurement:
        if contender.words == "fr":
            raise ConfigError("cuda_graphs=true: block 'stem' cannot be captured")
        return measurement(0.1, {"play": 0.1})

    monkeypatch.setattr(run_file, "measure", measure_some)
    found = contenders(methods=["bp"], k=[1])
    entries = [run_file.Entry(each) for each in (replace(found[0], words="fr", method="fr"), *found)]
    bench = run_file.Bench(make_settings({"rounds": 1}), entries, tmp_path)
    bench.run(SignalWatch())
    assert [row.words for row in bench.rows()] == ["bp"] and [each["method"] for each in bench.failures] == ["fr"]
    assert "block 'stem' cannot be captured" in capsys.readouterr().err


def test_what_all_share_is_not_what_stands_behind_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_file, "measure", lambda *_: measurement(0.1, {"play": 0.1}))
    found = contenders(methods=["plain batch_size=16 threads=3", "bp"], k=[1])
    bench = run_file.Bench(make_settings({"rounds": 1}), [run_file.Entry(each) for each in found], tmp_path)
    bench.run(SignalWatch())
    content = json.loads((tmp_path / "bench.json").read_text())
    assert [row["words"] for row in content["rows"]] == ["plain batch_size=16 threads=3", "bp"]
    assert content["config"]["batch_size"] == 8 and content["env"]["numerics"]["threads"] == found[1].plan.threads != 3


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    bench = run_file.Bench(make_settings({}), [], tmp_path / "gone")
    with pytest.raises(RunFailed, match=rf"{tmp_path}/gone/bench.json: cannot be written \(No such file"):
        bench.write()


@pytest.mark.parametrize(("num_measured", "words", "complete"), [(1, ["bp"], 0), (3, ["bp", "fr"], 1)])
def test_of_rounds_that_are_cut_short_the_complete_ones_are_left_and_of_the_first_what_there_is(
    num_measured: int, words: list[str], complete: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[str] = []

    def measure_some(contender: Contender, *_: Any) -> Measurement:
        if len(measured) == num_measured:
            raise Interrupted("stopped", 75)
        measured.append(contender.label)
        return measurement(0.1, {"play": 0.1})

    monkeypatch.setattr(run_file, "measure", measure_some)
    settings = make_settings({"methods": ["bp", "fr"], "k": [1], "rounds": 2})
    found = contenders(methods=["bp"], k=[1])
    found.append(replace(found[0], words="fr", method="fr"))
    bench = run_file.Bench(settings, [run_file.Entry(each) for each in found], tmp_path)
    with pytest.raises(Interrupted), watch_signals() as signals:
        bench.run(signals)
    content = json.loads((tmp_path / "bench.json").read_text())
    assert [row["words"] for row in content["rows"]] == words and content["complete_rounds"] == complete
    assert {row["num_samples"] for row in content["rows"]} == {4}  # of one measurement each


def test_settings_are_told_by_help(tmp_path: Path) -> None:
    result = call(tmp_path, "bench", "--help")
    assert result.returncode == 0 and all(f"bench.{key}" in result.stdout for key in vars(BenchSettings()))


def test_every_other_round_is_backwards_and_the_fastest_pipeline_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def measure_some(contender: Contender, *_: Any) -> Measurement:
        order.append(contender.label)
        return Measurement([float(contender.num_microbatches)]) if contender.num_microbatches else measurement(9.0)

    monkeypatch.setattr(run_file, "measure", measure_some)
    found = contenders(methods=["fr", "1f1b"], k=[2], microbatches=[1, 2])
    settings = make_settings({"methods": ["fr", "1f1b"], "k": [2], "rounds": 2})
    bench = run_file.Bench(settings, [run_file.Entry(each) for each in found], tmp_path)
    bench.run(SignalWatch())
    labels = [each.label for each in found]
    goes_on = [label for label in labels if label != "1f1b K=2 M=4"]
    assert len(goes_on) == len(labels) - 1 and order == [*labels, *goes_on[::-1]]
    (row,) = (row for row in bench.rows() if row.method == "1f1b")
    assert row.num_microbatches == 2 and row.tried_microbatches == {2: 2.0, 4: 4.0}


def test_a_method_named_twice_runs_once() -> None:
    found = contenders(methods=["fr", "bp", "fr"], k=[2])
    assert [each.label for each in found] == list(by_label(methods=["fr", "bp"], k=[2]))


def test_medians_of_a_bench_are_no_means_and_no_maxima() -> None:
    samples = [CheckpointCost(1.0, pause, whole, size) for pause, whole, size in ((1, 4, 3), (2, 5, 4), (9, 9, 8))]
    found = CheckpointCosts.of(samples)
    assert (found.pause_s, found.whole_after_s, found.num_bytes) == (2, 5, 4)
    rounds = [Measurement([1.0], [[Iteration(1.0, {})]], [peak], [peak + 1]) for peak in (10, 20, 90)]
    row = make_row(by_label(methods=["bp"], k=[1])["bp K=1"], rounds)
    assert (row.peak_memory, row.accounted_memory) == ([20], [21])


@pytest.mark.parametrize(
    "setting",
    ["transport=ipc", "streams=false", "partition=auto", "memory_limit_gb=1", "replicas=2", "devices=[0]",
     "freeze=[1]", "method.warmup=zero", "++partition=auto", "+method.own=1"],
)  # fmt: skip
def test_settings_of_the_modules_are_compared_with_bp_without_them(setting: str) -> None:
    found = by_label(methods=["bp", "fr"], k=[2])
    fr = replace(found["fr K=2"], words=f"fr {setting}")
    rows = [make_row(found["bp K=1"], [measurement(4.0)]), make_row(fr, [measurement(2.0)])]
    compare(rows)
    assert rows[1].speedup_vs_single == 2.0


def cells(text: str) -> list[dict[str, str]]:
    head, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    return [dict(zip(head, line, strict=True)) for line in lines]


def test_every_cell_of_a_benchs_table_is_of_its_column() -> None:
    row = replace(
        make_row(by_label(methods=["fr"], k=[2])["fr K=2"], [measurement(1.0, {"play": 1.0}, {"play": 1.0})]),
        threads=3, step_time_s=Quartiles(0.1, 0.2, 0.4), simulated_step_time_s=0.3, images_per_s=50.0,
        speedup_vs_plain=1.1, speedup_vs_single=1.2, speedup_vs_locked=1.3, limit=1.4, limit_uncontended=1.5,
        efficiency=0.6, waiting_share=[0.25, 0.5], idle_share=0.7, peak_memory=[3 * 2**20, 5 * 2**20], num_processes=2,
    )  # fmt: skip
    expected = {
        "method": "fr", "K": "2", "threads": "3", "step, s": "0.2", "quartiles": "0.1 to 0.4", "simulated, s": "0.3",
        "over plain": "1.10", "over BP, K = 1": "1.20", "over locked BP": "1.30", "limit": "1.40",
        "limit, uncontended": "1.50", "efficiency": "0.60", "waiting": "25 %, 50 %", "GPU idle": "70 %",
        "peak, MiB": "3, 5",
    }  # fmt: skip
    (found,) = cells(as_table([row]))
    assert found.pop("images/s").startswith("50") and found == expected
    (one,) = cells(as_table([replace(row, num_processes=1)]))
    assert one["peak, MiB"] == "3", "modules of one process share its peak"
    costs = [CheckpointCost(extra, 0.1, 0.9, 3 * 2**19) for extra in (0.3, 0.2, 0.7)]
    (cost,) = cells(as_checkpoint_table([replace(row, checkpoint=CheckpointCosts.of(costs))]))
    assert cost == {
        "method": "fr", "K": "2", "a checkpoint costs, s": "0.3", "quartiles": "0.25 to 0.5",
        "at one a minute": "0.50 %", "pause, s": "0.1", "whole after, s": "0.9", "MiB": "1.5",
    }  # fmt: skip


def test_checkpoints_of_a_bench_leave_room_for_writing_and_for_one_at_the_end() -> None:
    plan = by_label(methods=["fr"], k=[2])["fr K=2"].plan
    plan.config["log_every"], plan.config["checkpoint"]["minutes"] = 1000, 10
    settings = make_settings({"checkpoints": 3, "warmup": 2, "steps": 6, "k": [2]})
    longer = with_checkpoints(plan, settings, 0.1)
    every = 2 + 6 + 3 * 2 + 10  # ten steps a second
    assert longer.config["checkpoint"]["every"] == every and longer.config["checkpoint"]["minutes"] is None
    assert longer.num_steps == longer.config["max_steps"] == 4 * every
    assert longer.config["log_every"] == 10 and longer.config["profile"] == 0


def test_what_a_simulation_takes_from_a_row_is_all_that_its_modules_computed() -> None:
    phases = {"play": 1.0, "replay": 2.0, "loss": 4.0, "backward": 8.0, "synthesize": 16.0, "load images": 32.0,
              "step": 64.0, "send features": 128.0, "send gradient": 256.0}  # fmt: skip
    found = _module_times(phases, 511.0 + 512.0)
    assert (found.play_s, found.forward_s, found.backward_s, found.step_s) == (1.0, 2.0, 12.0, 64.0 + 128 + 256 + 512)
    assert (found.load_s, found.synthesize_s) == (32.0, 16.0)
