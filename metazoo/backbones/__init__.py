"""The built-in backbones; the registry finds each by its entry point."""

from metazoo.backbones.conv4 import Conv4
from metazoo.backbones.mlp import MLP
from metazoo.backbones.resnet12 import ResNet12
from metazoo.base.backbone import Backbone

__all__ = ["MLP", "Backbone", "Conv4", "ResNet12"]
