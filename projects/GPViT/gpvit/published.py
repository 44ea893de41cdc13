"""Where configs of users find the released backbones."""

from .model_zoo import IMAGENET_WEIGHTS as IMAGENET_WEIGHTS
