from .checkpointer import Checkpointer
from .eval_hook import EvalHook
from .trainer import Trainer

__all__ = ["Checkpointer", "EvalHook", "Trainer"]
