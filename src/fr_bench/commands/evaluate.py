"""``fr-bench eval RUN_DIR``: the test error of a run's final weights, with as many modules as one likes.

Of a run that has not finished it takes the weights of the last checkpoint.

Weights are stored under the names of their blocks, so it does not matter how many modules they were trained in.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fr_bench.checkpoints.files import DamagedCheckpoint, newest_good, step_of, verify, weights_file, whole_folders
from fr_bench.errors import ConfigError
from fr_bench.records.console import metrics_text
from fr_bench.records.run_files import strict_json
from fr_bench.settings.comparison import SINCE_LATER, with_own_loader
from fr_bench.settings.config import COMPONENTS
from fr_bench.settings.trust import foreign_targets, references
from fr_bench.unread import say

if TYPE_CHECKING:
    from torch import nn


def main(argv: list[str]) -> int:
    """Prints loss and error over exactly the test set (and the validation set, if the run had one).

    Raises:
        ConfigError: no run there, no weights in it, or weights that do not fit its model.
    """
    parser = argparse.ArgumentParser(prog="fr-bench eval", description="Evaluates the final weights of a run.")
    parser.add_argument("run_dir", type=Path, help="a run directory, as the last line of a run names it")
    parser.add_argument("--k", type=int, help="modules to cut the network into (default: as it was trained)")
    parser.add_argument("--step", type=int, help="the weights of the checkpoint after so many steps, if it is there")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--trust", action="store_true", help="call what config.yaml names, also where that is not fr-bench's own"
    )
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    arguments = parser.parse_args(argv)
    if arguments.k is not None and arguments.k < 1:
        raise ConfigError(f"--k {arguments.k}: must be at least 1.")
    config = read_config(arguments.run_dir)
    folder, which = find_weights(arguments.run_dir / "checkpoints", config["k"], arguments.step)
    if arguments.k is not None and arguments.k != config["k"]:
        config |= {"k": arguments.k, "partition": "equal", "freeze": [], "module_lr": None}
    # Weights are evaluated alike whatever trained them, and some methods cannot be planned for one process.
    config |= {"method": {"_target_": "fr_bench.methods.bp.Backpropagation", "name": config["method"]["name"]}}
    config |= {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.0}}
    config |= {"schedule": {"_target_": "fr_bench.schedules.Constant"}}
    config |= {"device": arguments.device, "devices": None, "transport": "serial", "threads": None}
    # What the training of a module had to keep, or a device had to have, an evaluation does without.
    config |= {"memory_limit_gb": None, "compile": False, "cuda_graphs": False, "dry_run": False}
    if not arguments.trust:
        refuse_foreign_code(config, arguments.run_dir)
    results = evaluate_weights(with_its_data(config, arguments.run_dir), folder)
    if arguments.json:
        print(strict_json({"k": config["k"], **results}))
        return 0
    print(f"{metrics_text(results)} ({which} of {arguments.run_dir}, K = {config['k']})")
    return 0


def refuse_foreign_code(config: dict[str, Any], run_dir: Path, trusting: str = "add --trust") -> None:
    """Makes sure that the config of a run, which may be somebody else's, calls nothing but what fr-bench's own do.

    Args:
        trusting: how to say that it may.

    Raises:
        ConfigError: naming what it would call.
    """
    path = run_dir / "config.yaml"
    for reference in references(config):
        raise ConfigError(
            f"{path}: has {reference}, which could stand for anything; configs that fr-bench writes refer to nothing. "
            f"If it is yours, or of somebody you trust, {trusting}."
        )
    found = foreign_targets(config)
    if found:
        verb = "is" if len(found) == 1 else "are"
        raise ConfigError(
            f"{path}: would call {', '.join(found)}, which {verb} not part of fr-bench; if that is "
            f"code of yours, or of somebody you trust, {trusting}."
        )


def find_weights(checkpoints: Path, k: int, step: int | None = None) -> tuple[Path, str]:
    """The folder of the final weights, and in words which; that of the newest good checkpoint where not all of the
    run's ``k`` modules came to write theirs.

    Args:
        step: take those of the checkpoint after so many steps instead.

    Raises:
        ConfigError: there is none after ``step`` steps, or it is damaged.
    """
    if step is not None:
        found = {step_of(folder): folder for folder in whole_folders(checkpoints)}
        if step not in found:
            there = f"there are {', '.join(map(str, sorted(found)))}" if found else "there is none"
            raise ConfigError(
                f"step {step}: {checkpoints} has no checkpoint after so many steps; {there} (checkpoint.every=N makes "
                "them, with checkpoint.keep=null they stay)."
            )
        try:
            return verify(found[step]).folder, f"weights after step {step}"
        except DamagedCheckpoint as error:
            raise ConfigError(f"{found[step]}: is damaged: {error}.") from error
    final = checkpoints / "final"
    if not all((final / weights_file(number)).exists() for number in range(1, k + 1)):
        checkpoint = newest_good(checkpoints, say)
        if checkpoint is not None:
            return checkpoint.folder, f"weights after step {checkpoint.step}"
    return final, "final weights"


def read_config(run_dir: Path) -> dict[str, Any]:
    """The resolved config of the run in ``run_dir``, with its cuts as ``partition``.

    Raises:
        ConfigError: there is none, or it cannot be read.
    """
    import yaml

    path = run_dir / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        config = {key: value for key, value in SINCE_LATER.items() if "." not in key} | config
        config["partition"] = config.pop("plan")["cuts"]
        config["k"] = len(config["partition"]) + 1  # of data-parallel processes each has the whole network
        config["replicas"] = 1  # all end with the same weights
        _ = [config[component]["_target_"] for component in COMPONENTS]  # as every run's has them
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the directory of a run.") from error
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, KeyError) as error:
        raise ConfigError(f"{path}: is not the config of a run ({type(error).__name__}).") from error
    return config


def with_its_data(config: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """The config of the run in ``run_dir`` with the data set's files where they are now: where they were, or else in
    $FR_BENCH_DATA. Nothing is downloaded.

    Raises:
        ConfigError: they are in neither; says where it looked.
    """
    from fr_bench.data.build import prepare_dataset
    from fr_bench.data.download import NotThere

    if not with_own_loader(config) or "root" not in config["dataset"]:
        return config
    now, title = os.environ.get("FR_BENCH_DATA"), ""
    faults: list[str] = []
    for root in (config["dataset"]["root"], *([now] if now else [])):
        dataset = {**config["dataset"], "root": root, "download": False}
        try:
            prepare_dataset(dataset)
            return {**config, "dataset": dataset}
        except NotThere as error:
            title, faults = error.title, [*faults, error.fault]
    raise ConfigError(
        f"{run_dir / 'config.yaml'}: the run's data set {title} is not there: {'; '.join(faults)}. $FR_BENCH_DATA can "
        "say where it lies now; for an evaluation nothing is downloaded."
    )


def evaluate_weights(config: dict[str, Any], folder: Path) -> dict[str, float]:
    """Builds the modules of ``config``, fills them with the weights in ``folder`` and evaluates them.

    Returns:
        ``test_loss``, ``test_error`` and, with a validation set, ``validation_loss``, ``validation_error``.
    """
    from fr_bench.planning.plan import check_model_and_data, make_plan
    from fr_bench.training.evaluation import evaluate
    from fr_bench.transport.side import LocalSide
    from fr_bench.workers.sources import Sources
    from fr_bench.workers.worker import build_modules, configure_process

    weights = read_weights(folder)
    check_model_and_data(config)
    plan = make_plan(without_tf32(config))
    configure_process(plan, 1)
    numbers = list(range(1, plan.k + 1))
    modules = build_modules(plan, numbers)
    for module in modules:
        fill(module.network, weights, folder)
    results: dict[str, float] = {}
    for split in Sources(plan, numbers).evaluation_sets:
        results |= evaluate(modules, LocalSide.chain(plan.k), split) or {}
    return results


def fill(network: nn.Module, weights: dict[str, Any], folder: Path) -> None:
    """Loads what of ``weights`` (of a whole model, from ``folder``) is the network's own, by name.

    Raises:
        ConfigError: they are of another model.
    """
    try:
        network.load_state_dict({name: weights[name] for name in network.state_dict() if name in weights})
    except RuntimeError as error:
        raise ConfigError(f"{folder}: these weights are not of this model: {' '.join(str(error).split())}") from error


def without_tf32(config: dict[str, Any]) -> dict[str, Any]:
    """The same in fp32 where no GPU is asked for, or there is none: TF32 is a way in which GPUs multiply."""
    import torch

    on_gpu = torch.cuda.is_available() and config["device"] != "cpu"
    return config if on_gpu or config["precision"] != "tf32" else config | {"precision": "fp32"}


def read_weights(folder: Path) -> dict[str, Any]:
    """All tensors in the safetensors files of ``folder``, by name.

    Raises:
        ConfigError: there are none, or a file is damaged.
    """
    from safetensors import SafetensorError

    from fr_bench.checkpoints import snapshot

    weights: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors"), key=lambda path: (len(path.name), path.name)):  # by number
        try:
            weights = snapshot.read_weights(path) | weights  # of processes with the whole network the first counts
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not weights:
        raise ConfigError(f"{folder}: holds no weights; a run writes them when it finishes.")
    return weights
