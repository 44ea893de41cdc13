"""A training's metrics and pictures for Weights & Biases (https://wandb.ai), with ``train.wandb=PROJECT``.

W&B's own environment variables say how: WANDB_MODE=offline sends nothing and keeps all in the run's folder, for
``wandb sync`` later; WANDB_ENTITY, WANDB_API_KEY and others are as in its documentation.
"""

from pathlib import Path
from typing import Any

from detectron2.utils.events import EventWriter, get_event_storage

from ...utils.errors import UserError
from ...utils.files import atomic_write
from ...utils.text import LINE_LIMIT, one_line

try:
    import wandb
except ImportError:
    raise UserError(
        "train.wandb needs Weights & Biases: `python -m pip install wandb`, or train.wandb=''"
    ) from None


class WandbWriter(EventWriter):
    """Writes what Detectron2's writers write, and stands before TensorBoard's, which removes the pictures.

    Args:
        project: of W&B.
        folder: of the run, which gives it its name; ``wandb_id`` in it has its id.
        config: of the training.
        resume: whether to go on with the run of that id.

    Raises:
        UserError: W&B cannot begin a run, for example because it has no API key, or its id cannot be kept.
    """

    def __init__(self, project: str, folder: Path, config: dict[str, Any], *, resume: bool) -> None:
        path = folder / "wandb_id"
        id = path.read_text(encoding="utf-8") if resume and path.exists() else None
        name = one_line(folder.resolve().name)
        config = {key: one_line(value, LINE_LIMIT) for key, value in config.items()}
        try:
            self.run = wandb.init(
                project=project, name=name, dir=str(folder), config=config, id=id, resume="allow"
            )
        except wandb.Error as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise UserError(
                f"train.wandb={project}: {reason}; WANDB_MODE=offline needs no account"
            ) from None
        with atomic_write(path) as partial:
            partial.write_text(self.run.id, encoding="utf-8")
        self.run.define_metric(
            "*", step_metric="iteration"
        )  # a resumed training may repeat iterations
        self._last_write = -1

    def write(self) -> None:
        storage = get_event_storage()
        rows: dict[int, dict[str, Any]] = {}
        for name, (value, iteration) in storage.latest_with_smoothing_hint().items():
            if iteration > self._last_write:
                rows.setdefault(iteration, {})[name] = value
        self._last_write = max(rows, default=self._last_write)
        for (
            name,
            picture,
            iteration,
        ) in storage._vis_data:  # Detectron2's own writer looks there, too
            rows.setdefault(iteration, {})[name] = wandb.Image(picture.transpose(1, 2, 0))
        for iteration, row in sorted(rows.items()):
            self.run.log(row | {"iteration": iteration})

    def close(self) -> None:
        self.run.finish()
