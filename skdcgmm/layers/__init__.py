"""The kinds of layer a stack is made of: specs for users, torch modules for the core."""

from skdcgmm.layers._base import EmissionFactory, Generation, Layer, LayerSpec, Shape
from skdcgmm.layers._convgmm import ConvGMM, MixtureLayer
from skdcgmm.layers._emissions import (
    ClippedGaussianEmission,
    FlooredGaussianEmission,
    GaussianEmission,
)
from skdcgmm.layers._maxpool import MaxPool, PoolLayer
from skdcgmm.layers._tables import CategoricalEmission

__all__ = [
    "CategoricalEmission",
    "ClippedGaussianEmission",
    "ConvGMM",
    "EmissionFactory",
    "FlooredGaussianEmission",
    "GaussianEmission",
    "Generation",
    "Layer",
    "LayerSpec",
    "MaxPool",
    "MixtureLayer",
    "PoolLayer",
    "Shape",
]
