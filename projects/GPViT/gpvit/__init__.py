from .backbone import SIZES, GPViT
