"""More devices than there are: speed-ups against closed forms, cuts under each method's costs, and what cannot be."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from harness import call, tiny_config
from test_bench import SMALL, cells
from torch import nn

from fr_bench.bench.forecast import _measured_network, _notes, as_table, make_forecast
from fr_bench.bench.settings import make_settings
from fr_bench.commands.bench import main
from fr_bench.errors import ConfigError
from fr_bench.methods.ddg import DecoupledDelayedGradients
from fr_bench.methods.dgl import DecoupledGreedyLearning
from fr_bench.methods.dni import DecoupledNeuralInterfaces
from fr_bench.methods.fr import FeaturesReplay
from fr_bench.methods.policy import Policy
from fr_bench.planning.costs import BlockCost, NetworkCosts
from fr_bench.planning.limits import balanced_limit
from fr_bench.planning.plan import make_plan
from fr_bench.simulation import METHODS, PEERS, Link
from fr_bench.simulation.settings import SimulateSettings, make_simulate_settings
from fr_bench.simulation.what_if import MeasuredNetwork, WhatIf, what_if

POLICIES = {
    "fr": FeaturesReplay.policy(),
    "ddg": DecoupledDelayedGradients.policy(),
    "dni": DecoupledNeuralInterfaces.policy(),
    "cdni": DecoupledNeuralInterfaces.policy(),
    "dgl": DecoupledGreedyLearning.policy(),
}


def network(num_blocks: int, **changes: Any) -> MeasuredNetwork:
    """Equal blocks whose backward takes two forwards, a second each."""
    settings: dict[str, Any] = {
        "blocks": [BlockCost(1.0, 1.0, 2.0)] * num_blocks,
        "output_bytes": [1.0] * num_blocks,
        "trains": [True] * num_blocks,
        "parameter_bytes": 0.0,
        "batch_size": 64,
        "policies": POLICIES,
    }
    return MeasuredNetwork(**(settings | changes))


def one(method: str, k: int, num_blocks: int, link: Link = Link(), **changes: Any) -> WhatIf:  # noqa: B008
    straggler = changes.pop("straggler", ())
    [row] = what_if(network(num_blocks, **changes), [k], [method], link, straggler)
    return row


# --- speed


@pytest.mark.parametrize(("k", "num_blocks", "limit"), [(2, 7, 1.75), (3, 10, 2.5), (4, 13, 3.25), (8, 25, 6.25)])
def test_fr_reaches_its_limit_with_cuts_balanced_under_its_own_costs(k: int, num_blocks: int, limit: float) -> None:
    row = one("fr", k, num_blocks)
    assert row.cuts == [3 * i for i in range(1, k)]  # module K, which does not replay, has four blocks
    assert row.speedup_vs_locked == row.speedup_vs_single == pytest.approx(limit)
    assert limit == pytest.approx(balanced_limit("fr", k) or 0)
    assert row.efficiency == pytest.approx(1) and row.waiting_share == pytest.approx([0.0] * k)
    assert row.images_per_s == pytest.approx(64 / (row.step_time_s or 0))


@pytest.mark.parametrize("k", [2, 4, 8])
def test_ddg_is_k_times_as_fast_and_locked_backpropagation_not_at_all(k: int) -> None:
    assert one("ddg", k, 16).speedup_vs_single == pytest.approx(k)
    locked = one("bp", k, 16)
    assert locked.speedup_vs_single == pytest.approx(1) and locked.speedup_vs_locked == 1
    assert locked.waiting_share == pytest.approx([1 - 1 / k] * k)


def test_fr_hides_messages_that_locked_backpropagation_waits_for() -> None:
    """Messages of 0.4 of a module's forward, as in the table of limits: no loss against the sum of all work."""
    link = Link(latency_s=0.0, bandwidth_bytes_per_s=1 / 1.2)  # 1.2 s a message, modules of three blocks
    row = one("fr", 4, 13, link)
    assert row.speedup_vs_single == pytest.approx(3.25)
    assert row.speedup_vs_locked is not None and row.speedup_vs_locked > 3.25


@pytest.mark.parametrize("method", ["gpipe", "1f1b"])
def test_a_pipeline_has_its_bubble_and_takes_the_best_number_of_micro_batches(method: str) -> None:
    row = one(method, 4, 16)
    assert row.num_microbatches == 32  # the most that were tried: eight a device
    assert row.speedup_vs_single == pytest.approx(4 * 32 / (32 + 3))
    assert one(method, 4, 16, batch_size=8).num_microbatches == 8


def test_data_parallelism_needs_no_cuts_and_waits_for_its_all_reduce() -> None:
    row = one("ddp", 32, 4)
    assert row.cuts == [] and row.speedup_vs_single == pytest.approx(32)
    assert row.speedup_vs_locked is None  # four blocks cannot be cut into 32 modules
    slow = one("ddp", 32, 4, Link(latency_s=1.0))
    assert slow.step_time_s is not None and slow.step_time_s >= 62
    assert slow.waiting_share == pytest.approx([62 / slow.step_time_s] * 32)


def test_a_straggler_sets_the_pace_and_those_not_named_are_not_slow() -> None:
    row = one("ddg", 4, 16, straggler=(1.0, 3.0))
    assert row.speedup_vs_single == pytest.approx(4 / 3)
    assert row.waiting_share == pytest.approx([2 / 3, 0, 2 / 3, 2 / 3])


def test_synthesizers_cost_what_they_cost_and_are_not_made_up() -> None:
    assert one("dni", 2, 8).reason == "what the network costs that it trains beside was not measured"
    free, costly = (one("dni", 2, 8, companions={"dni": [seconds] * 8}) for seconds in (0.0, 4.0))
    assert (free.cuts, free.speedup_vs_single) == ([4], pytest.approx(2))
    assert costly.step_time_s == pytest.approx(min(max(3 * n + 4.0, 3 * (8 - n)) for n in range(1, 8)))


@pytest.mark.parametrize("method", ["dni", "dgl"])
def test_the_network_beside_that_counts_is_that_of_the_last_block_below_the_cut(method: str) -> None:
    row = one(method, 2, 4, companions={method: [9.0, 1.0, 9.0, 9.0]})
    assert row.cuts == [2] and row.step_time_s == pytest.approx(2 * 3 + 1.0)


def test_locked_backpropagation_waits_for_every_message() -> None:
    row = one("bp", 4, 8, Link(latency_s=0.5, bandwidth_bytes_per_s=1.0))
    assert row.step_time_s == pytest.approx(8 * 3 + 2 * 3 * 1.5)  # up and down at three cuts


def test_interleaving_and_splitting_the_backward_shrink_the_bubble() -> None:
    """With as many micro-batches as devices 1F1B's bubble is 4.5 s: K - 1 times a micro-batch's 1.5 s."""
    step_s = {
        row.method: row.step_time_s
        for row in what_if(network(8), [4], ["1f1b", "interleaved", "zero_bubble"], Link(), microbatches=[1])
    }
    assert step_s == pytest.approx({"1f1b": 6 + 4.5, "interleaved": 6 + 4.5 / 2, "zero_bubble": 6 + 4.5 / 3})


def test_images_and_optimizer_steps_take_time() -> None:
    settings = {"load_s": 0.5, "blocks": [BlockCost(1.0, 1.0, 2.0, 0.25)] * 4}
    for method in (*METHODS, *PEERS):
        assert one(method, 1, 4, **settings).step_time_s == pytest.approx(0.5 + 4 * 3.25), method
    assert one("ddg", 4, 4, **settings).step_time_s == pytest.approx(0.5 + 3.25)
    # Every process of ddp makes a quarter of the images, and steps with all of the weights.
    assert one("ddp", 4, 4, **settings).step_time_s == pytest.approx(0.5 / 4 + 3 + 4 * 0.25)
    assert one("bp", 1, 4, **settings).speedup_vs_single == pytest.approx(1)


def test_checkpointed_activations_cost_a_second_forward() -> None:
    policies = {"bp": Policy("graph", "true", recomputes=True)}
    assert one("bp", 4, 8, policies=policies).step_time_s == pytest.approx(8 * 4)


def test_one_device_is_one_device_whatever_the_method() -> None:
    slow = Link(latency_s=1.0, bandwidth_bytes_per_s=1.0)  # what stays on the device takes none
    for row in what_if(network(4), [1], [*METHODS, *PEERS], slow):
        assert row.step_time_s == pytest.approx(12.0), row.method


def test_little_memory_and_many_images_are_not_rounded_away() -> None:
    row = dataclasses.replace(one("fr", 2, 8), predicted_memory=[2**18, 2**20 * 30], images_per_s=12345.6)
    table = as_table([row, dataclasses.replace(row, predicted_memory=[2**18, 2**18])])
    assert [[cell.strip() for cell in line.split("|")[-3:-1]] for line in table.splitlines()[2:]] == [
        ["30", "30"],
        ["0.2", "0.5"],
    ]
    assert table.count(" 12346 ") == 2


# --- what cannot be


@pytest.mark.parametrize(
    ("method", "k", "changes", "reason"),
    [
        ("fr", 9, {}, "needs 9 stages, and the model has 8 blocks"),
        ("interleaved", 8, {}, "needs 16 stages"),
        ("1f1b", 3, {}, "needs 3, 6, 12, 24 micro-batches, which do not divide a batch of 64"),
        ("ddp", 3, {}, "needs equal shares, and 3 does not divide a batch of 64"),
        ("ddg", 3, {"trains": [True, True] + [False] * 6}, "too few of the model's 8 blocks have parameters"),
    ],
)
def test_what_cannot_be_has_a_row_with_the_reason(method: str, k: int, changes: dict[str, Any], reason: str) -> None:
    row = one(method, k, 8, **changes)
    assert row.reason is not None and reason in row.reason
    assert row.step_time_s is None and row.cuts is None and row.predicted_memory is None
    assert reason in as_table([row])


def test_an_unknown_method_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="no schedule is called 'frr'"):
        one("frr", 2, 8)


# --- memory


def test_memory_is_asked_for_with_the_cuts_of_the_method_and_not_for_peers() -> None:
    asked: list[tuple[str, list[int]]] = []

    def memory_of(method: str, cuts: Any) -> list[int]:
        asked.append((method, list(cuts)))
        return [10 * (len(cuts) + 1)]

    rows = what_if(network(7), [2], ["fr", "gpipe", "ddp"], Link(), memory_of=memory_of)
    assert asked == [("fr", [3])]
    assert [row.predicted_memory for row in rows] == [[20], None, None]


# --- settings


def test_settings_become_a_link() -> None:
    link = make_simulate_settings({"k": [8, 16], "bandwidth_gb_s": 12.5, "latency_us": 20}).link()
    assert (link.latency_s, link.bandwidth_bytes_per_s) == pytest.approx((20e-6, 12.5e9))
    settings = make_simulate_settings({"k": [1]})
    assert settings.k == [1] and {*METHODS, *PEERS} - {*settings.methods} == {"cdni"}  # which costs what dni does
    assert make_simulate_settings({}).k is None and make_simulate_settings({}).link() == Link()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"k": [0]}, r"simulate\.k=\[0\]"),
        ({"k": 8}, r"simulate\.k=8"),
        ({"k": [2], "bandwidth_gb_s": 0}, r"simulate\.bandwidth_gb_s=0"),
        ({"k": [2], "latency_us": -1}, r"simulate\.latency_us=-1"),
        ({"k": [2], "latency_us": float("inf")}, r"simulate\.latency_us=inf"),
        ({"k": [2], "latency_us": True}, r"simulate\.latency_us=True"),
        ({"k": [2], "bandwidth_gb_s": float("nan")}, r"simulate\.bandwidth_gb_s=nan"),
        ({"k": [2], "straggler": [0]}, r"simulate\.straggler=\[0\]"),
        ({"k": [2], "straggler": [1, float("inf")]}, r"simulate\.straggler=\[1, inf\]"),
        ({"k": [8, 2], "straggler": [1, 1, 2]}, r"simulate\.straggler=\[1, 1, 2\]: has 3 factors"),
        ({"k": [2], "methods": ["fr k=3"]}, r"simulate\.methods=\['fr k=3'\]: must be a list of names"),
        ({"latency_us": 5}, r"simulate\.latency_us=5: has no effect without simulate\.k"),
        ({"bandwith_gb_s": 5}, r"simulate\.bandwith_gb_s: unknown.*bandwidth_gb_s"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        make_simulate_settings(values)


# --- in a bench


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("simulate.kk=[8]", "simulate.kk: unknown. Did you mean 'k'"),
        ("simulate.k=[]", "simulate.k=[]: must be a list of integers"),
        ("simulate.k=8,16", "a plain KEY=VALUE is meant, with a list in brackets: simulate.k="),
        ("simulate.bandwidth_gb_s=fast", "simulate.bandwidth_gb_s=fast"),
        ("simulate.methods=[]", "simulate.methods=[]: must be a list of names"),
        ("bench.methods=[]", "bench.methods=[]: leaves nothing to do"),
        ("dry_run=true", "dry_run: belongs to fr-bench train"),
    ],
)
def test_a_mistake_is_named_before_anything_starts(word: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        main([word, f"run_dir={tmp_path / 'run'}"])
    assert message in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_method_that_is_nobodys_is_named_with_the_nearest(tmp_path: Path) -> None:
    words = ["model=mlp", "bench.methods=[]", "simulate.k=[2]", "simulate.methods=[interleavd]"]
    expected = (
        "simulate.methods=interleavd: must be one of bp, fr, ddg, dni, cdni, dgl, gpipe, 1f1b, interleaved, "
        "zero_bubble, ddp. Did you mean 'interleaved'?"
    )
    with pytest.raises(ConfigError, match=re.escape(expected)):
        main([*words, f"run_dir={tmp_path / 'run'}"])


def test_nothing_needs_to_be_measured_beside_a_simulation() -> None:
    assert make_settings({"methods": []}, simulates=True).methods == []


def test_its_settings_are_told_by_help(tmp_path: Path) -> None:
    result = call(tmp_path, "bench", "--help")
    assert result.returncode == 0 and all(f"simulate.{key}" in result.stdout for key in vars(SimulateSettings()))


def test_the_predicted_memory_is_that_of_a_run_with_the_same_cuts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def config_of(words: Sequence[str]) -> dict[str, Any]:
        values = dict(word.split("=", 1) for word in words)
        return tiny_config(values["method"], int(values["k"]), "ipc")

    settings = make_simulate_settings({"k": [3], "methods": ["bp", "fr", "ddg", "cdni"]})
    rows = make_forecast(settings, [1], config_of).rows
    for row in rows:
        plan = make_plan(tiny_config(row.method, 3, "ipc", partition=row.cuts))
        assert row.predicted_memory == [sum(found.values()) for found in plan.predicted_memory], row.method
    assert len(rows) == 4 and all(row.speedup_vs_locked for row in rows)


def test_where_memory_is_not_predicted_a_simulation_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def config_of(words: Sequence[str]) -> dict[str, Any]:
        values = dict(word.split("=", 1) for word in words)
        return tiny_config(values["method"], int(values["k"]), "ipc", precision="bf16")

    forecast = make_forecast(make_simulate_settings({"k": [2], "methods": ["bp", "fr"]}), [1], config_of)
    assert all(row.speedup_vs_locked and row.predicted_memory is None for row in forecast.rows)
    assert not any(note.startswith("memory:") for note in forecast.notes)


class OwnDni(DecoupledNeuralInterfaces):
    """Nothing else."""


class OwnPolicy(FeaturesReplay):
    @classmethod
    def policy(cls, **_: Any) -> Policy:
        return Policy(keeps="graph", gradient="delayed")


def test_a_method_of_ones_own_is_simulated_as_what_it_is_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    own = {"shrinking": ("fr", "tiny_methods.ShrinkingFR"), "own_dni": ("dni", f"{__name__}.OwnDni")}
    own["odd"] = ("fr", f"{__name__}.OwnPolicy")

    def config_of(words: Sequence[str]) -> dict[str, Any]:
        values = dict(word.split("=", 1) for word in words)
        name, target = own.get(values["method"], (values["method"], None))
        config = tiny_config(name, int(values["k"]), "ipc")
        if target is not None:
            config["method"] |= {"_target_": target, "name": values["method"]}
        if values["method"] == "shrinking":
            config["method"]["factor"] = 0.5
        return config

    settings = make_simulate_settings({"k": [2, 3], "methods": ["fr", "shrinking", "dni", "own_dni"], "latency_us": 50})
    forecast = make_forecast(settings, [1], config_of)
    rows = {(row.method, row.k): row for row in forecast.rows}
    for k in (2, 3):
        assert rows["shrinking", k] == dataclasses.replace(rows["fr", k], method="shrinking")
        # What is trained beside it is timed anew.
        assert rows["own_dni", k].speedup_vs_locked and rows["own_dni", k].predicted_memory
    assert any(note.startswith("dni, own_dni: steps of the optimizers") for note in forecast.notes)
    assert "'shrinking' is taken to take as long as FeaturesReplay, which it is made from" in forecast.notes
    with pytest.raises(ConfigError, match=r"simulate.methods=odd: how long OwnPolicy takes is not known"):
        make_forecast(make_simulate_settings({"k": [2], "methods": ["odd"]}), [1], config_of)


def test_the_command_simulates_alone(tmp_path: Path) -> None:
    command = ["bench", *SMALL, "bench.methods=[]"]
    command += ["simulate.k=[2,64]", "simulate.straggler=[1,3]", "simulate.latency_us=20", f"run_dir={tmp_path / 'b'}"]
    result = call(tmp_path, *command)
    assert result.returncode == 0, result.stderr
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["simulate.json"]
    content = json.loads((tmp_path / "b" / "simulate.json").read_text())
    rows = {(row["method"], row["k"]): row for row in content["rows"]}
    assert list(rows) == [(method, k) for method in content["simulate"]["methods"] for k in (2, 64)]
    assert content["simulate"]["straggler"] == [1, 3] and content["measured_on"] and content["env"]["versions"]
    for (method, k), row in rows.items():
        if k == 64:
            assert row["reason"] and row["step_time_s"] is None
            continue
        assert row["reason"] or row["images_per_s"] == pytest.approx(16 / row["step_time_s"])
        assert (row["predicted_memory"] is not None) == (method in METHODS)
    for part in ("simulated, from costs", "uncontended", "needs 64 stages", "simulate.json"):
        assert part in result.stdout, part


def test_the_command_simulates_beside_a_bench(tmp_path: Path) -> None:
    command = ["bench", *SMALL, "simulate.k=[2]"]
    command += ["simulate.methods=[fr]", "bench.methods=[bp]", "bench.k=[1]", "bench.rounds=1", "bench.steps=2"]
    result = call(tmp_path, *command, f"run_dir={tmp_path / 'b'}")
    assert result.returncode == 0, result.stderr
    assert {"bench.json", "simulate.json"} <= {path.name for path in (tmp_path / "b").iterdir()}
    (row,) = json.loads((tmp_path / "b" / "simulate.json").read_text())["rows"]
    assert (row["method"], row["k"]) == ("fr", 2) and "simulated, from costs" in result.stdout


def test_a_simulated_table_has_the_mean_share_of_waiting() -> None:
    row = replace(one("fr", 2, 8), waiting_share=[0.0, 0.5], predicted_memory=[2**20, 2**21], reason=None)
    (found,) = cells(as_table([row]))
    assert found["waiting, mean"] == "25 %"
    assert (found["largest module, MiB"], found["all modules, MiB"]) == ("2.0", "3.0")


def test_a_simulation_says_what_it_takes_for_granted_of_the_methods_that_it_has() -> None:
    def notes(schedules, bandwidth=None, **config):
        plan = SimpleNamespace(config=tiny_config("bp", 1, **config))
        return "\n".join(_notes(SimpleNamespace(bandwidth_gb_s=bandwidth), plan, schedules, []))

    for schedule, words in (("ddg", "ddg: copies"), ("ddp", "ddp: 1/K"), ("1f1b", "pipelines:")):
        assert words in notes(["bp", schedule]) and words not in notes(["bp", "fr", "dgl"])
    assert "links are as wide" in notes(["bp"]) and "links are as wide" not in notes(["bp"], 10.0)
    assert "not compiled" in notes(["bp"], compile=True) and "not compiled" not in notes(["bp"])


def test_of_each_block_its_output_and_whether_it_trains_are_those_of_that_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first block is frozen, and halves what comes out; the second makes ten classes of it."""
    blocks = [("frozen", nn.Linear(8, 4).requires_grad_(False)), ("head", nn.Linear(4, 10))]
    costs = NetworkCosts([BlockCost(1.0, 1.0, 2.0)] * 2, [0.0] * 2, load=0.25)
    monkeypatch.setattr("fr_bench.bench.forecast.costs_of_plan", lambda *_, **__: costs)
    found = _measured_network({"bp": make_plan(tiny_config("bp", 1))}, blocks, torch.zeros(3, 8), [], {})
    assert (found.output_bytes, found.trains) == ([3 * 4 * 4, 3 * 10 * 4], [False, True])
    assert found.parameter_bytes == (4 * 10 + 10) * 4
    assert found.load_s == 0.25 and found.blocks == costs.blocks
