"""Random weights for torch-fidelity's InceptionV3 (24 M numbers: too large to ship), from numpy alone.

weights(seed, shapes) -> {state-dict name: float32 array in torch layout (conv OIHW, linear (out, in))}
`shapes` is the "shapes" entry of meta.json.  numpy's *legacy* RandomState is used because its stream is frozen.
Every tensor has its own generator, so names can be made in any order or alone.
"""

import zlib

import numpy as np


def tensor(seed, name, shape):
    r = np.random.RandomState((zlib.crc32(name.encode()) ^ seed) & 0xFFFFFFFF)
    mod, leaf = name.rsplit(".", 1)
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if mod.endswith(".bn"):
        if leaf == "weight":
            a = r.uniform(0.6, 1.4, shape)
        elif leaf == "bias":
            a = r.standard_normal(shape) * 0.2
        elif leaf == "running_mean":  # placeholders: bn_stats.npz holds the ones to use
            a = np.zeros(shape)
        else:
            a = np.ones(shape)
    elif leaf == "weight":
        fan = int(np.prod(shape[1:]))
        a = r.standard_normal(shape) * (1.6 / fan) ** 0.5
    else:  # fc.bias
        a = r.standard_normal(shape) * 0.1
    return a.astype(np.float32)


def weights(seed, shapes, bn_stats=None):
    """bn_stats: np.load('bn_stats.npz'), every *.running_mean and *.running_var."""
    w = {n: tensor(seed, n, tuple(s)) for n, s in shapes.items()}
    for n in bn_stats or ():
        w[n] = bn_stats[n]
    return w


def images(seed, n, h, w):
    """uint8 (n, 3, h, w): smooth fields plus some grain."""
    r = np.random.RandomState(seed)
    out = np.empty((n, 3, h, w), np.uint8)
    yy, xx = np.mgrid[0:h, 0:w].astype(np.float64)
    for i in range(n):
        for c in range(3):
            f = np.zeros((h, w))
            for _ in range(5):
                ky, kx, ph = r.uniform(-6, 6), r.uniform(-6, 6), r.uniform(0, 2 * np.pi)
                f += r.uniform(20, 60) * np.sin(2 * np.pi * (ky * yy / h + kx * xx / w) + ph)
            f += 127 + r.standard_normal((h, w)) * 6
            out[i, c] = np.clip(np.rint(f), 0, 255)
    return out
