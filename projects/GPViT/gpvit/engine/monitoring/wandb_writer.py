"""Write metrics and images to Weights & Biases (https://wandb.ai), with ``train.wandb=PROJECT``.

It is configured by W&B's environment variables, such as WANDB_ENTITY and WANDB_API_KEY. With
WANDB_MODE=offline, nothing is sent, and all data is kept in the run's folder for ``wandb sync``.
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
    """Writes the metrics and images of Detectron2's event storage to a run of W&B.

    It must be called before TensorBoard's writer, which removes the images from the storage.

    Args:
        project: of W&B.
        folder: of the run; the W&B run gets its name. The file ``wandb_id`` in it has the ID of the
            W&B run.
        config: flattened config of the run.
        resume: whether to resume the W&B run with that ID.

    Raises:
        UserError: W&B cannot start a run, for example without an API key, or ``wandb_id`` cannot be
            written.
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
        # Not W&B's own step, which must not decrease: a resumed run may repeat iterations.
        self.run.define_metric("*", step_metric="iteration")
        self._last_write = -1

    def write(self) -> None:
        storage = get_event_storage()
        rows: dict[int, dict[str, Any]] = {}  # iteration -> values
        for name, (value, iteration) in storage.latest_with_smoothing_hint().items():
            if iteration > self._last_write:
                rows.setdefault(iteration, {})[name] = value
        self._last_write = max(rows, default=self._last_write)
        # A private attribute, which Detectron2's TensorboardXWriter reads as well.
        for name, image, iteration in storage._vis_data:
            rows.setdefault(iteration, {})[name] = wandb.Image(image.transpose(1, 2, 0))  # to HWC
        for iteration, row in sorted(rows.items()):
            self.run.log(row | {"iteration": iteration})

    def close(self) -> None:
        self.run.finish()
