"""The quick start: a small GPViT Mask R-CNN for the synthetic data set, on a CPU in minutes.

    make quickstart
"""
from .common.coco import dataloader
from .common.mask_rcnn import model
from .common.optim import lr_multiplier, optimizer
from .common.train import train

width = 64
model.backbone.net.update(embed_dim=96, num_heads=3, group_tokens=[0, 32, 0, 0, 16, 0], drop_path_rate=0.0, norm="BN", pretrain_img_size=192)
model.backbone.out_channels = width
model.proposal_generator.head.in_channels = width
model.proposal_generator.update(batch_size_per_image=128, pre_nms_topk=(500, 300), post_nms_topk=(200, 100))
model.proposal_generator.anchor_generator.sizes = [[12], [24], [48], [96], [192]]
heads = model.roi_heads
heads.update(batch_size_per_image=64, positive_fraction=0.5)
heads.box_head.update(conv_dims=[width], conv_norm="BN", fc_dims=[256])
heads.box_head.input_shape.channels = width
heads.box_predictor.input_shape.channels = 256
heads.box_predictor.cls_agnostic_bbox_reg = True
heads.mask_head.update(conv_dims=[width] * 3, conv_norm="BN")
heads.mask_head.input_shape.channels = width
dataloader.update(short_side=192, max_size=400)
dataloader.train.update(total_batch_size=4, num_workers=1)
dataloader.test.update(num_workers=1)
optimizer.update(lr=1e-3)
optimizer.params.lr_factor_func.num_layers = 6
train.update(max_iter=1000, eval_period=0, output_dir="output/quickstart", checkpointer=dict(period=300, max_to_keep=2), clip_norm=1.0)
