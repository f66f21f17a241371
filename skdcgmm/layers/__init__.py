"""The kinds of layer a stack is made of: specs for users, torch modules for the core."""

from skdcgmm.layers._base import Generation, Layer, LayerSpec, Shape
from skdcgmm.layers._convgmm import ConvGMM, MixtureLayer
from skdcgmm.layers._emissions import GaussianEmission
from skdcgmm.layers._maxpool import MaxPool, PoolLayer

__all__ = [
    "ConvGMM",
    "GaussianEmission",
    "Generation",
    "Layer",
    "LayerSpec",
    "MaxPool",
    "MixtureLayer",
    "PoolLayer",
    "Shape",
]
