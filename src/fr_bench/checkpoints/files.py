"""Checkpoints as files: what is where, how it gets there, and how a damaged one is told from a good one.

    checkpoints/
        last                        the name of the newest whole one
        step_00000120/
            module_1.safetensors    weights and buffers, under the names of their blocks
            module_1.state.pt       the rest of module 1, read with weights_only=True
            ...
            manifest.json           written when every module has finished; what it does not list does not exist

A file is written under a temporary name, synced and renamed, so that it is whole or not there; the manifest has
the size and the checksum of every file, and a checksum of itself. Nothing here needs torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fr_bench.atomic import replace_file

FORMAT = 1
MANIFEST = "manifest.json"
LAST = "last"


class DamagedCheckpoint(Exception):
    """A checkpoint that cannot be used; the message says why."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint.

    Attributes:
        folder: where it is.
        manifest: ``step``, ``k``, ``replicas``, ``cuts``, ``blocks`` (all, in order), ``train_time`` (s), ``config``
            (resolved), ``code`` (of the user's own, that made the steps, the oldest first), ``modules``: by number
            ``module``, ``is_exact``, ``gradients_sent``, ``gradients_received``, ``gradients_kept``, ``files``, and of
            module K ``steps_since_record``, since the last `train` record.
    """

    folder: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        """Completed iterations."""
        return int(self.manifest["step"])

    @property
    def k(self) -> int:
        """Number of modules."""
        return int(self.manifest["k"])

    @property
    def replicas(self) -> int:
        """How many replicas of them there were."""
        return int(self.manifest.get("replicas", 1))  # checkpoints of older versions lack it

    @property
    def numbers(self) -> range:
        """Of all modules of all replicas."""
        return range(1, len(self.manifest["modules"]) + 1)


def folder_of(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint after ``step`` iterations goes."""
    return checkpoints / f"step_{step:08d}"


def make_folder(folder: Path) -> None:
    """Makes ``folder``, of one checkpoint, and the one of all that it is in. Not the run's, which is there: if it is
    not, somebody has moved it away, and another one of its name would not be the run's.

    Raises:
        OSError: the run directory is gone, or the like.
    """
    folder.parent.mkdir(exist_ok=True)
    folder.mkdir(exist_ok=True)


def weights_file(number: int) -> str:
    """Name of module ``number``'s weights."""
    return f"module_{number}.safetensors"


def state_file(number: int) -> str:
    """Name of the rest of module ``number``."""
    return f"module_{number}.state.pt"


def write_file(path: Path, content: bytes | memoryview) -> dict[str, Any]:
    """Writes ``path`` whole and synced, and returns its ``bytes`` and ``sha256``.

    Raises:
        OSError: the disk is full, or the like; nothing is left behind.
    """
    replace_file(path, content)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def sync_folder(folder: Path) -> None:
    """Has the names in ``folder`` on disk, not the files' contents alone."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_manifest(checkpoints: Path, manifest: dict[str, Any]) -> None:
    """Makes the checkpoint whole, and then ``last`` name it. ``manifest`` has nothing that strict JSON has not."""
    folder = folder_of(checkpoints, manifest["step"])
    content = json.loads(json.dumps({"format": FORMAT, **manifest}, allow_nan=False))
    content["checksum"] = _checksum(content)
    replace_file(folder / MANIFEST, json.dumps(content, indent=1) + "\n")
    sync_folder(folder)
    replace_file(checkpoints / LAST, f"{folder.name}\n")
    sync_folder(checkpoints)


def _checksum(content: dict[str, Any]) -> str:
    plain = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the checkpoint in ``folder``, itself intact; its files are not looked at.

    Raises:
        DamagedCheckpoint: it is missing, damaged, or of another version of this program.
    """
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except OSError as error:
        raise DamagedCheckpoint(f"{MANIFEST} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DamagedCheckpoint(f"{MANIFEST} is damaged") from error
    if not isinstance(content, dict) or content.get("checksum") != _checksum(content):
        raise DamagedCheckpoint(f"{MANIFEST} is damaged")
    if content["format"] != FORMAT:
        raise DamagedCheckpoint(f"has format {content['format']}, this program reads {FORMAT}")
    if content["step"] != step_of(folder):
        raise DamagedCheckpoint(f"is named {folder.name} and holds step {content['step']}")
    return content


def verify(folder: Path) -> Checkpoint:
    """Reads every byte of the checkpoint in ``folder``.

    Raises:
        DamagedCheckpoint: something is missing, truncated or changed.
    """
    manifest = read_manifest(folder)
    for module in manifest["modules"]:
        for name, expected in module["files"].items():
            path = folder / name
            try:
                size = path.stat().st_size
                with path.open("rb") as stream:
                    found = hashlib.file_digest(stream, "sha256").hexdigest()
            except OSError as error:
                raise DamagedCheckpoint(f"{name} cannot be read: {error.strerror}") from error
            if size != expected["bytes"]:
                raise DamagedCheckpoint(f"{name} has {size} bytes instead of {expected['bytes']}")
            if found != expected["sha256"]:
                raise DamagedCheckpoint(f"{name} is damaged (its checksum differs)")
    return Checkpoint(folder, manifest)


def newest_good(
    checkpoints: Path,
    complain: Callable[[str], None],
    mismatch: Callable[[dict[str, Any]], str | None] = lambda _: None,
) -> Checkpoint | None:
    """The newest checkpoint that is whole and fits; None if there is none.

    Args:
        checkpoints: of a run.
        complain: is told of each newer one that is passed over, and why.
        mismatch: manifest -> what in it does not fit, None if it does.
    """
    folders = whole_folders(checkpoints)
    for folder in folders:
        try:
            reason = mismatch(read_manifest(folder))
            if reason is None:
                return verify(folder)
        except DamagedCheckpoint as error:
            reason = str(error)
        complain(f"checkpoint {folder}: {reason}" + ("" if folder == folders[-1] else "; trying the one before"))
    return None


def whole_folders(checkpoints: Path) -> list[Path]:
    """The folders of checkpoints that were finished, the newest first; what is in them may be damaged."""
    return [folder for folder in all_folders(checkpoints) if _was_finished(folder)]


def _was_finished(folder: Path) -> bool:
    """One that cannot be looked into may have been, and is no rubbish."""
    try:
        return (folder / MANIFEST).exists()
    except OSError:
        return True


def all_folders(checkpoints: Path) -> list[Path]:
    """The folders of all checkpoints, also of those that were never finished, the newest first."""
    found = [path for path in checkpoints.glob("step_*") if path.is_dir() and path.name[5:].isdigit()]
    return sorted(found, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    """After how many iterations the checkpoint in ``folder`` was taken, by its name."""
    return int(folder.name[5:])


def keep_newest(checkpoints: Path, keep: int) -> None:
    """Removes all whole checkpoints but the ``keep`` newest."""
    remove(whole_folders(checkpoints)[keep:])


def remove_after(checkpoints: Path, step: int) -> None:
    """Removes what a run that goes on from ``step`` will write anew, and what was never finished."""
    unfinished = set(all_folders(checkpoints)) - set(whole_folders(checkpoints))
    remove(folder for folder in all_folders(checkpoints) if step_of(folder) > step or folder in unfinished)


def remove(folders: Iterable[Path]) -> None:
    """Removes checkpoints, as far as that can be done, the manifest first: a half removed one is never taken for a
    whole one."""
    for folder in folders:
        with contextlib.suppress(OSError):
            (folder / MANIFEST).unlink()
        shutil.rmtree(folder, ignore_errors=True)
