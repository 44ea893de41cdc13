"""Builders of the backbones in Detectron2's registry, for yacs configs."""

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import LastLevelMaxPool

from .gpvit import SIZES, GPViT
from .pyramid import SimpleFeaturePyramid


@BACKBONE_REGISTRY.register()
def build_gpvit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> GPViT:
    """GPViT alone: the maps MODEL.GPVIT.OUT_FEATURES at stride 8."""
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
