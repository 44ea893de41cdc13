"""Addresses of the pretrained backbones, under the name that configs of users import."""

from .model_zoo import IMAGENET_WEIGHTS as IMAGENET_WEIGHTS
