"""`gpvit train` does what train_net.py does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY, TINY
from gpvit.cli import train
from gpvit.utils.errors import UserError

pytestmark = pytest.mark.long

CONFIG = str(REPOSITORY / "configs" / "quickstart.py")


def test_two_processes_train_and_evaluate(synthetic_data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gpvit", "train", "--config-file", CONFIG, *TINY]
    command += ["--data", synthetic_data, "--num-gpus", "2", "train.device=cpu"]
    command += ["train.max_iter=1", f"train.output_dir={tmp_path / 'run'}"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "projects" / "GPViT")}
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr  # nor in the spawned processes
    page = (tmp_path / "run" / "README.md").read_text()
    assert f"```bash\npython -m gpvit train --config-file {CONFIG} " in page and "2 x CPU" in page
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["images"] == 4


def test_invalid_config_value_raises_before_output_is_written(tmp_path: Path) -> None:
    overrides = ["train.checkpointer.period=0", f"train.output_dir={tmp_path / 'run'}"]
    with pytest.raises(UserError, match="train.checkpointer.period"):
        train.main(["--config-file", CONFIG, *overrides])
    assert not list(tmp_path.iterdir())
