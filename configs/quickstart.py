"""The quick start: a small GPViT Mask R-CNN for the synthetic data set, on a CPU in minutes.

    make quickstart
"""
from .common.coco import dataloader
from .common.mask_rcnn import model
from .common.optim import lr_multiplier, optimizer
from .common.train import train

model.backbone.net.update(embed_dim=96, stem_convs=0, group_tokens=[0, 32, 0, 0, 16, 0], drop_path_rate=0.0, norm="BN", pretrain_img_size=256)
model.backbone.update(out_channels=64)
model.proposal_generator.head.in_channels = 64
model.proposal_generator.batch_size_per_image = 128
model.proposal_generator.pre_nms_topk = (500, 300)
model.proposal_generator.post_nms_topk = (200, 100)
model.proposal_generator.anchor_generator.sizes = [[16], [32], [64], [128], [256]]
model.roi_heads.batch_size_per_image = 64
model.roi_heads.box_head.update(conv_dims=[], conv_norm="", fc_dims=[256])
model.roi_heads.box_head.input_shape.channels = 64
model.roi_heads.box_predictor.input_shape.channels = 256
model.roi_heads.mask_head.update(conv_dims=[64] * 3)
model.roi_heads.mask_head.input_shape.channels = 64
dataloader.update(short_side=288, max_size=400)
dataloader.train.update(total_batch_size=4, num_workers=1)
dataloader.test.update(num_workers=1)
optimizer.update(lr=1e-3)
optimizer.params.lr_factor_func.num_layers = 6
train.update(max_iter=40, eval_period=0, output_dir="output/quickstart", checkpointer=dict(period=300, max_to_keep=2), clip_norm=1.0)
