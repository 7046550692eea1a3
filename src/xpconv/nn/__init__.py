"""Neural networks on the array you already have: layers, losses, optimisers, training, weights in files."""

from xpconv.nn.activations import Gelu, LeakyRelu, Relu, Sigmoid, Silu, Tanh
from xpconv.nn.base import Buffer, Layer, Parameter
from xpconv.nn.layers import BatchNorm, Dense, Dropout, Flatten, Sequential
from xpconv.nn.losses import mse, softmax_cross_entropy
from xpconv.nn.optimizers import SGD, Adam, Optimizer
from xpconv.nn.spatial import AvgPool, Conv1D, Conv2D, Conv3D, Corr1D, Corr2D, Corr3D, GlobalAvgPool, MaxPool
from xpconv.nn.training import History, accuracy, fit, predict
from xpconv.nn.weights import load, save

__all__ = [
    "SGD",
    "Adam",
    "AvgPool",
    "BatchNorm",
    "Buffer",
    "Conv1D",
    "Conv2D",
    "Conv3D",
    "Corr1D",
    "Corr2D",
    "Corr3D",
    "Dense",
    "Dropout",
    "Flatten",
    "Gelu",
    "GlobalAvgPool",
    "History",
    "Layer",
    "LeakyRelu",
    "MaxPool",
    "Optimizer",
    "Parameter",
    "Relu",
    "Sequential",
    "Sigmoid",
    "Silu",
    "Tanh",
    "accuracy",
    "fit",
    "load",
    "mse",
    "predict",
    "save",
    "softmax_cross_entropy",
]
