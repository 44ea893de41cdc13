"""The table of variants, and the training runs that it asks for."""

import ast
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data import DatasetCatalog
from gpvit.cli.train import argument_parser, configure
from gpvit.config import flattened
from gpvit.data.datasets.register import class_names
from gpvit.engine.resume import settings as evaluation_settings
from gpvit.evaluation.metrics import TASKS
from gpvit.utils.errors import UserError, preview
from gpvit.utils.fingerprint import dataset_fingerprint
from gpvit.utils.kinds import Kind, integer, number, several, text
from gpvit.utils.yaml_io import read_yaml
from omegaconf import DictConfig

REPOSITORY = Path(__file__).resolve().parents[2]
SYNTHETIC = "synthetic"
SECTIONS = ("model", "dataloader", "optimizer", "lr_multiplier", "train")  # of a config

# Kinds of values in the file.
NAME = text("text", "something")
COUNT = integer(1, of="images")
SEEDS = several(integer(0), "a list of whole numbers, at least 0")
RATES = several(number(above=0), "a list of numbers above 0, such as 0.001 or 1.0e-3", least=0)
OVERRIDES = several(
    Kind("an override", lambda value: isinstance(value, str) and value[:1] != "-" and "=" in value),
    "a list of overrides such as train.max_iter=100",
    least=0,
)
METRICS = several(NAME, "a list of metrics such as segm/AP")
MAPPINGS = several(
    Kind("a mapping", lambda value: isinstance(value, Mapping)), "a list of mappings"
)

# Settings that do not affect the result.
IRRELEVANT_SETTINGS = (
    # Datasets are identified by their content.
    "dataloader.evaluator.dataset_name",
    "dataloader.folders",
    "dataloader.test.dataset.names",
    "dataloader.train.dataset.names",
    "dataloader.test.num_workers",
    "dataloader.train.num_workers",
    "dataloader.train.pin_memory",
    "dataloader.train.prefetch_factor",
    "dataloader.train.timeout",
    "train.checkpointer",
    "train.log_period",
    "train.output_dir",
    "train.pictures",
    "train.wandb",
)


@dataclass
class Variant:
    """A model and how it is trained; what is not given is as in the table's first variant.

    Attributes:
        name: of the variant.
        group: heading above it and the variants that follow.
        config: path of the config file, relative to the repository.
        overrides: of the config.
        learning_rates: to choose the best from; none for that of the first variant.
    """

    name: str
    group: str = ""
    config: str = ""
    overrides: list[str] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        _require(NAME, self.name, "the name of a variant")
        for value, what in ((self.group, "group"), (self.config, "config")):
            if value:
                _require(NAME, value, f"{self.name}: {what}")
        _require(OVERRIDES, self.overrides, f"{self.name}: overrides")
        _require(RATES, self.learning_rates, f"{self.name}: learning_rates")
        _require_unique(self.learning_rates, f"{self.name}: learning_rates")


@dataclass
class Table:
    """Variants that are compared with each other.

    Attributes:
        title: of the table.
        data: name of the dataset.
        metrics: names of metrics, as in metrics.json.
        best_by: the metric by which a learning rate is chosen.
        variants: the first one is the reference.
        overrides: of the configs of all variants.
    """

    title: str
    data: str
    metrics: list[str]
    best_by: str
    variants: list[Variant]
    overrides: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _require(NAME, self.title, "the title of a table")
        _require(NAME, self.data, f"{self.title}: data")
        _require(METRICS, self.metrics, f"{self.title}: metrics")
        _require_unique(self.metrics, f"{self.title}: metrics")
        _require(OVERRIDES, self.overrides, f"{self.title}: overrides")
        _require(MAPPINGS, self.variants, f"{self.title}: variants")
        self.variants = [_build(Variant, variant, self.title) for variant in self.variants]
        for name in self.metrics:
            task, _, metric = name.partition("/")
            if task not in TASKS or metric not in TASKS[task].metrics:
                raise UserError(f"{self.title}: {name} is not a metric")
        if self.best_by not in self.metrics:
            raise UserError(f"{self.title}: best_by {self.best_by} is not among the metrics")
        _require_unique([variant.name for variant in self.variants], f"{self.title}: variants")
        reference = self.variants[0]
        for variant in self.variants:
            variant.config = variant.config or reference.config
            if not os.path.isfile(REPOSITORY / variant.config):
                raise UserError(
                    f"{self.title}, {variant.name}: config {variant.config or '(none)'} does not "
                    "exist"
                )


@dataclass
class Images:
    """Number of images of each split of the synthetic dataset."""

    train: int
    val: int

    def __post_init__(self) -> None:
        _require(COUNT, self.train, "synthetic: train")
        _require(COUNT, self.val, "synthetic: val")


@dataclass
class Plan:
    """The content of the file.

    Attributes:
        seeds: of the runs of each variant.
        synthetic: size of the synthetic dataset.
        tables: in the order of display.
    """

    seeds: list[int]
    synthetic: Images
    tables: list[Table]

    def __post_init__(self) -> None:
        _require(SEEDS, self.seeds, "seeds")
        _require_unique(self.seeds, "seeds")
        _require(MAPPINGS, self.tables, "tables")
        self.synthetic = _build(Images, self.synthetic, "synthetic")
        self.tables = [_build(Table, table, "a table") for table in self.tables]
        _require_unique([table.title for table in self.tables], "tables")


def read_plan(path: Path) -> Plan:
    """Read the table of variants.

    Raises:
        UserError: the file cannot be read, or is not as described above.
    """
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    content = read_yaml(source, str(path))
    try:
        return _build(Plan, content, "the file")
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _build(kind: Any, content: Any, where: str) -> Any:
    """Build a dataclass from a mapping; raise a UserError for unknown and missing keys."""
    known = [item.name for item in fields(kind)]
    if not isinstance(content, Mapping):
        raise UserError(f"{where} must be a mapping with the keys {preview(known)}")
    unknown = sorted(content.keys() - set(known), key=str)
    if unknown:
        raise UserError(f"{where} has unknown keys ({preview(unknown)}); known: {', '.join(known)}")
    for item in fields(kind):
        is_required = item.default is MISSING and item.default_factory is MISSING
        if is_required and item.name not in content:
            raise UserError(f"{where} lacks the key {item.name}")
    return kind(**content)


def _require(kind: Kind, value: Any, where: str) -> None:
    if not kind.fits(value):
        raise UserError(f"{where} {kind.fault(value)}")


def _require_unique(values: Sequence[Any], where: str) -> None:
    repeated = [value for value in values if values.count(value) > 1]
    if repeated:
        raise UserError(f"{where}: {preview(repeated[:1])} appears twice")


class Run(NamedTuple):
    """One run of train_net.py.

    Attributes:
        table: its title.
        variant: its name.
        settings: arguments of train_net.py that all runs of the variant share.
        learning_rate: None for that of the config.
        seed: of the run.
    """

    table: str
    variant: str
    settings: tuple[str, ...]
    learning_rate: float | None
    seed: int

    @property
    def key(self) -> tuple[str, str, float | None, int]:
        """Identifies the run among the results."""
        return self.table, self.variant, self.learning_rate, self.seed

    @property
    def arguments(self) -> list[str]:
        """Arguments of train_net.py, without the output folder."""
        arguments = [*self.settings, f"train.seed={self.seed}"]
        if self.learning_rate is not None:
            arguments.append(f"optimizer.lr={self.learning_rate}")
        return arguments

    def __str__(self) -> str:
        rate = "" if self.learning_rate is None else f", learning rate {self.learning_rate}"
        return f"{self.table}, {self.variant}{rate}, seed {self.seed}"

    def load_config(self) -> DictConfig:
        """Return the config, with device and dataset filled in, as train_net.py does."""
        return configure(argument_parser().parse_intermixed_args(self.arguments))

    def digest(self) -> str:
        """Return a hash of what determines the results of the variant.

        That is the config with device and precision, the functions and classes of the config file
        and of those that it imports, and the dataset. Other code is not covered.

        Raises:
            UserError: the config cannot be loaded.
        """
        args = argument_parser().parse_intermixed_args(self.settings)
        try:
            cfg = configure(args)
        except (UserError, OSError, SyntaxError) as error:
            raise UserError(f"{self.table}, {self.variant}: {error}") from None
        values = {"evaluation": evaluation_settings(cfg), "code": _code(Path(args.config_file))}
        for key, value in flattened(cfg).items():
            if key.startswith(SECTIONS) and not _is_below(key, IRRELEVANT_SETTINGS):
                values[key] = value
        for split in ("train", "test"):
            loader = cfg.dataloader[split]
            records = DatasetCatalog.get(loader.dataset.names)
            values[split] = dataset_fingerprint(records, class_names(loader))
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def build_run(
    table: Table, variant: Variant, learning_rate: float | None, seed: int, data: Path
) -> Run:
    settings = ["--config-file", str(REPOSITORY / variant.config), "--data", str(data)]
    settings += [*table.overrides, *variant.overrides]
    return Run(table.title, variant.name, tuple(settings), learning_rate, seed)


def _is_below(key: str, sections: Sequence[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _code(path: Path) -> str:
    """Return the functions and classes of a config file and of those that it imports.

    The config has only their names.
    """
    parts = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            parts.append(ast.unparse(node))
        elif isinstance(node, ast.ImportFrom) and node.level and node.module:
            folder = path.parents[node.level - 1]
            parts.append(_code(folder.joinpath(*node.module.split(".")).with_suffix(".py")))
    return "\n".join(filter(None, parts))
