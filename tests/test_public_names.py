"""Names that users import can be imported."""

import subprocess
import sys

import pytest

NAMES = [
    "import gpvit; gpvit.GPViT, gpvit.SIZES, gpvit.SimpleFeaturePyramid, gpvit.GPViTAdapter",
    "import gpvit; gpvit.Predictor, gpvit.add_gpvit_config, gpvit.__version__",
    "import gpvit; gpvit.checkpoint.load, gpvit.checkpoint.from_published",
    "import gpvit; gpvit.published.IMAGENET_WEIGHTS",
    "from gpvit.published import IMAGENET_WEIGHTS",
    "from gpvit.checkpoint import File, fetch, from_published, load, read, save, write",
    "from gpvit.config import load_config",
    "from gpvit.data import InstanceMapper, OpenCVResize, build_train_loader",
    "from gpvit.data import multi_scale_crop, train_augmentations",
    "from gpvit.evaluation import COCOEvaluator",
    "from gpvit.modeling import ClampedBox2BoxTransform, LastLevelNormP6P7, RetinaNet",
    "from gpvit.solver import layer_decay, multistep_schedule",
]


@pytest.mark.parametrize("code", NAMES)
def test_public_names_can_be_imported(code: str) -> None:
    exec(code, {})


@pytest.mark.long
def test_importing_modeling_registers_the_backbones() -> None:
    code = (
        "import gpvit.modeling; from detectron2.modeling import BACKBONE_REGISTRY as r; "
        "r.get('build_gpvit_backbone')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
