"""Parameters in the layouts of others, from Flax's and back. NumPy alone.

PyTorch's convolutions are `[out, in, h, w]` for `[h, w, in, out]`, its linear layers
`[out, in]`, and an image's channels come before its rows where it is flattened.
"""

import numpy as np

from benchmarks.training.workloads import Parameters

_WEIGHTS = ("kernel", "scale", "embedding")


def to_torch(parameters: Parameters) -> Parameters:
    """`{"conv1.weight": ..., ...}` from `{"conv1/kernel": ..., ...}`."""
    channels = _channels(parameters)
    named = {}
    for name, x in parameters.items():
        if name == "dense1/kernel" and channels:
            x = _flattened(x, channels).transpose(2, 0, 1, 3).reshape(x.shape)
        named[_torch_name(name)] = np.ascontiguousarray(_transposed(name, x))
    return named


def from_torch(named: Parameters, like: Parameters) -> Parameters:
    """The way back, for the names that `like` has."""
    channels = _channels(like)
    parameters = {}
    for name, old in like.items():
        x = named[_torch_name(name)]
        if name.endswith("kernel"):
            x = x.transpose(2, 3, 1, 0) if x.ndim == 4 else x.T
        if name == "dense1/kernel" and channels:
            side = round((len(x) / channels) ** 0.5)
            x = x.reshape(channels, side, side, -1).transpose(1, 2, 0, 3)
        parameters[name] = x.reshape(old.shape)
    return parameters


def to_haiku(parameters: Parameters) -> dict[str, Parameters]:
    """`{"conv1": {"w": ..., "b": ...}, ...}`; arrays are alike."""
    layers: dict[str, Parameters] = {}
    for name, x in parameters.items():
        layer, kind = name.split("/")
        layers.setdefault(layer, {})["w" if kind == "kernel" else "b"] = x
    return layers


def from_haiku(layers: dict[str, Parameters], like: Parameters) -> Parameters:
    pairs = {name: name.split("/") for name in like}
    return {
        name: np.asarray(layers[layer]["w" if kind == "kernel" else "b"])
        for name, (layer, kind) in pairs.items()
    }


def _torch_name(name: str) -> str:
    *parts, kind = name.split("/")
    return ".".join([*parts, "weight" if kind in _WEIGHTS else kind])


def _transposed(name: str, x: np.ndarray) -> np.ndarray:
    if not name.endswith("kernel"):
        return x
    return x.transpose(3, 2, 0, 1) if x.ndim == 4 else x.T


def _channels(parameters: Parameters) -> int:
    """Of the images that a model flattens; 0 if it has none."""
    return parameters["conv2/kernel"].shape[3] if "conv2/kernel" in parameters else 0


def _flattened(x: np.ndarray, channels: int) -> np.ndarray:
    """`[side, side, channels, out]` from a dense layer after images."""
    side = round((len(x) / channels) ** 0.5)
    return x.reshape(side, side, channels, -1)
