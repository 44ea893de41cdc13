"""The backbones in Detectron2's registry, for yacs configs."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from .gpvit import SIZES, GPViT
from .pyramid import SimpleFeaturePyramid


def add_gpvit_config(cfg: CfgNode) -> None:
    """Adds MODEL.GPVIT, which the two registered backbones read. The names are those of the constructors."""
    cfg.MODEL.GPVIT = CfgNode()
    cfg.MODEL.GPVIT.SIZE = "L1"
    cfg.MODEL.GPVIT.DROP_PATH_RATE = 0.1
    cfg.MODEL.GPVIT.NORM = "SyncBN"
    cfg.MODEL.GPVIT.FINAL_NORM = True
    cfg.MODEL.GPVIT.OUT_FEATURES = ["last_feat"]
    cfg.MODEL.GPVIT.USE_ACT_CHECKPOINT = False
    cfg.MODEL.GPVIT.FROZEN_BLOCKS = 0
    cfg.MODEL.GPVIT.PYRAMID = CfgNode()
    cfg.MODEL.GPVIT.PYRAMID.OUT_CHANNELS = 256
    cfg.MODEL.GPVIT.PYRAMID.SCALE_FACTORS = [2.0, 1.0, 0.5, 0.25]
    cfg.MODEL.GPVIT.PYRAMID.NORM = "LN"
    cfg.MODEL.GPVIT.PYRAMID.SQUARE_PAD = 0


@BACKBONE_REGISTRY.register()
def build_gpvit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GPViT:
    """GPViT alone: the maps of MODEL.GPVIT.OUT_FEATURES, at stride 8."""
    options = cfg.MODEL.GPVIT
    return GPViT(
        **SIZES[options.SIZE],
        drop_path_rate=options.DROP_PATH_RATE,
        norm=options.NORM,
        final_norm=options.FINAL_NORM,
        out_features=options.OUT_FEATURES,
        use_act_checkpoint=options.USE_ACT_CHECKPOINT,
        frozen_blocks=options.FROZEN_BLOCKS,
    )


@BACKBONE_REGISTRY.register()
def build_gpvit_simple_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SimpleFeaturePyramid:
    """GPViT with the simple feature pyramid, p2 to p6."""
    options = cfg.MODEL.GPVIT.PYRAMID
    net = build_gpvit_backbone(cfg, input_shape)
    return SimpleFeaturePyramid(
        net=net,
        in_feature="last_feat",
        out_channels=options.OUT_CHANNELS,
        scale_factors=options.SCALE_FACTORS,
        top_block=LastLevelMaxPool(),
        norm=options.NORM,
        square_pad=options.SQUARE_PAD,
    )
