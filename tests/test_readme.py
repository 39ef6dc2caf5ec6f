"""What README prints works as printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def section(title: str) -> str:
    return README.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def blocks(text: str, language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [content for name, content in found if name == language]


def test_a_model_a_data_set_and_a_method_of_ones_own_train_together(tmp_path: Path) -> None:
    """The first line of a file's block is where it is."""
    text = section("Your own")
    files = [*blocks(text, "yaml"), *blocks(text, "python")]
    assert len(files) == 6
    for content in files:
        path = tmp_path / content.splitlines()[0].removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (command,) = blocks(text, "")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (run,) = tmp_path.glob("outputs/mine-mine-mine-k2-s0/*")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 2 * (1000 // 128) and summary["cuts"] in ([1], [2])
