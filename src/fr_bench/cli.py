"""``fr-bench SUBCOMMAND ...``: finds the subcommand, and turns what it raises into exit codes.

Hydra has no subcommands, so this dispatcher takes the first word off and hands the rest on. It imports
neither torch nor Hydra: help and completion must answer at once.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module, metadata

from fr_bench import __version__
from fr_bench.errors import ConfigError, FrBenchError, nearest
from fr_bench.processes.signals import catch_early, ignore_late
from fr_bench.processes.torchrun import Torchrun
from fr_bench.unread import is_unread, lead_nowhere, open_to_all, say


@dataclass(frozen=True)
class Command:
    """A subcommand: ``module`` has ``main(argv: list[str]) -> int``, which returns the exit code."""

    module: str
    does: str


COMMANDS = {
    "train": Command("fr_bench.commands.train", "one run, or a sweep with -m"),
    "plot": Command("fr_bench.commands.plot", "figures of runs from their local logs: loss, error, memory, speed"),
    "report": Command("fr_bench.commands.report", "tables of runs from their local logs, as Markdown and CSV"),
    "eval": Command("fr_bench.commands.evaluate", "the test error of a run's final weights, with any K"),
    "bench": Command("fr_bench.commands.bench", "speed and memory of methods and peers, side by side in one run"),
    "doctor": Command("fr_bench.commands.doctor", "what this machine has: devices, transports, data sets, W&B, Slurm"),
}

LIBRARIES = ("torch", "hydra-core", "wandb")
EXAMPLES = """\
  fr-bench train experiment=quickstart            a first run on real images, half a minute on two cores
  fr-bench train method=fr k=4 dataset=cifar10    Features Replay in four processes; settings are key=value
  fr-bench train -m method=bp,fr k=1,2,4          a sweep: every combination, with a table at the end"""


def console() -> int:
    """The command in a process of its own: :func:`main`, with two seconds less at its start and end. Torch's modules
    make a million objects that stay; Python's collector would look through them again and again."""
    gc.set_threshold(200_000, 10, 10)
    catch_early()
    open_to_all()
    try:
        return main()
    finally:
        ignore_late()
        leave_what_stays()


def leave_what_stays() -> None:
    """Has the interpreter, which is about to end, not look through torch's objects a last time. From torch 2.15 on it
    must: its triton takes what is left for leaks, and says so at length."""
    torch = sys.modules.get("torch")
    if torch is None or torch.__version__ < "2.15":  # as versions, not as strings
        gc.freeze()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line ``argv`` (default: the process's) and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        exit_code = _dispatch(words)
        sys.stdout.flush()
        return exit_code
    except BrokenPipeError:
        if not is_unread(sys.stdout):
            raise
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        lead_nowhere(sys.stdout)
        say(f"the output cannot be written ({error.strerror})")
        return 1
    except FrBenchError as error:
        say(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        say("interrupted")
        return 130


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0
    if words[0] == "--version" or (words[0] in COMMANDS and words[1:] == ["--version"]):  # Hydra would tell its own
        print(_versions())
        return 0
    if words[0] in ("-sc", "--shell-completion"):
        return _complete(words)
    name, *rest = words
    if name not in COMMANDS:
        raise ConfigError(_unknown(name, words))
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise ConfigError("the folder that this was started in is gone; cd to one that is there") from error
    if name != "train" and Torchrun.from_environment() is not None:
        raise ConfigError(f"fr-bench {name}: is the work of one process; start it without torchrun.")
    try:
        return int(import_module(COMMANDS[name].module).main(rest))
    except SystemExit as stop:  # argparse's, which has printed the help or what is wrong
        if not isinstance(stop.code, int):
            raise
        return stop.code


def usage() -> str:
    """Returns the help text: subcommands, examples, completion."""
    width = max(map(len, COMMANDS)) + 2
    commands = "\n".join(f"  {name:<{width}}{command.does}" for name, command in COMMANDS.items())
    return (
        "usage: fr-bench SUBCOMMAND [ARGUMENTS]\n\n"
        "Trains deep networks without backward locking, and measures it beside backpropagation.\n\n"
        f"subcommands (each has --help):\n{commands}\n\n"
        f"examples:\n{EXAMPLES}\n\n"
        'completion in bash: eval "$(fr-bench -sc install=bash)"   fish: fr-bench -sc install=fish | source'
    )


def _unknown(name: str, words: list[str]) -> str:
    if "=" in name or name in ("-m", "--multirun"):
        return f"a subcommand comes first. Did you mean 'fr-bench train {' '.join(words)}'?"
    known = ", ".join(COMMANDS)
    return f"unknown subcommand '{name}'.{nearest(name, COMMANDS)} Subcommands: {known} (fr-bench --help)."


def _versions() -> str:
    found = {item.name: item.version for item in metadata.distributions(path=sys.path) if item.name in LIBRARIES}
    libraries = ", ".join(f"{name} {found.get(name, 'not installed')}" for name in LIBRARIES)
    return f"fr-bench {__version__} (Python {sys.version.split()[0]}, {libraries})"


def _complete(words: list[str]) -> int:
    """Serves Hydra's completion script, which knows neither subcommands nor what values a setting may have: completes
    those, or hides ``train``."""
    action, _, shell = words[-1].partition("=")
    if action not in ("install", "uninstall", "query") or shell not in ("bash", "fish"):
        raise ConfigError(f"{' '.join(words)}: needs install=bash, install=fish, uninstall=bash or uninstall=fish.")
    if action == "query":
        line = os.environ.get("COMP_LINE", "")
        _, typed, rest = [*line.split(maxsplit=2), "", "", ""][:3]
        if typed not in COMMANDS or not (rest or line.endswith(" ")):
            print("\n".join(name for name in COMMANDS if name.startswith(typed)))
            return 0
        if typed != "train":
            return 0  # the others take folders, which the shell completes
        if "=" in (word := line.split(" ")[-1]):
            values = import_module("fr_bench.settings.config").completions(word)
            if values:  # else it may be a group of Hydra's
                print("\n".join(values))
                return 0
        os.environ["COMP_LINE"] = f"fr-bench {rest}"
    return int(import_module(COMMANDS["train"].module).main(words))
