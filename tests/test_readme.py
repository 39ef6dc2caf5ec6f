"""What the documentation prints works as printed, and what it links to is there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from harness import call, read_records

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "results").glob("*/README.md"))]


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [content for name, content in found if name == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text())
    for path, title in links:
        target = (page.parent / path) if path else page
        assert target.exists(), path
        if title:
            titles = [re.sub(r"[^\w -]", "", line.lower()).strip().replace(" ", "-") for line in headings(target)]
            assert title in titles, f"{path}#{title}"


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)


def test_a_model_a_data_set_and_a_method_of_ones_own_train_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first line of a file's block is where it is. The first command is the shell's, as it is printed; the others
    are this process's, which has imported all that they need."""
    text = (ROOT / "docs" / "your_own.md").read_text()
    files = [*blocks(text, "yaml"), *blocks(text, "python")]
    assert len(files) == 14
    for content in files:
        path = tmp_path / content.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    command, other_command, third_command = blocks(text, "")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    first = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    monkeypatch.syspath_prepend(tmp_path)
    third, other = (call(tmp_path, *words_behind_the_name(each)) for each in (third_command, other_command))
    for done, method in ((first, "mine"), (third, "projected"), (other, "clipped")):
        assert done.returncode == 0, done.stderr
        (run,) = tmp_path.glob(f"outputs/mine-mine-{method}-k2-s0/*")
        summary = json.loads((run / "summary.json").read_text())
        assert summary["steps"] == 2 * (1000 // 128) and summary["cuts"] in ([1], [2])
        train = [record for record in read_records(run) if record["kind"] == "train"]
    assert train[-1]["lr"] == pytest.approx(0.001 * (1 + 13 / 7) ** -0.5)  # the last step, by the schedule there
    done = call(tmp_path, *words_behind_the_name(other_command), "method.limit=0")
    assert (done.returncode, done.stderr) == (2, "fr-bench: method.limit=0: must be above 0, or null for none\n")


def words_behind_the_name(command: str) -> list[str]:
    """Of a printed command that makes the folder it is called in importable."""
    path, name, *words = shlex.split(command)
    assert (path, name) == ("PYTHONPATH=.", "fr-bench")
    return words
