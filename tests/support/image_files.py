"""Files in MNIST's format."""

import numpy as np

RANDOM = np.random.RandomState(0)


def pictures(n, *shape):
    return RANDOM.randint(0, 256, (n, *shape)).astype(np.uint8)


def idx(array):
    """Bytes of an array as MNIST's files have them."""
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_idx(folder, n, ending="", pack=lambda data: data):
    """The four files of MNIST, with n and n/2 images."""
    folder.mkdir(parents=True)
    written = []
    for split, count in (("train", n), ("t10k", n // 2)):
        x, y = pictures(count, 28, 28), (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{split}-images-idx3-ubyte{ending}").write_bytes(pack(idx(x)))
        (folder / f"{split}-labels-idx1-ubyte{ending}").write_bytes(pack(idx(y)))
        written.append((x, y))
    return written
