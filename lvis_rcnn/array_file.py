"""A .npy file that grows by pieces, for arrays too long for memory."""

from pathlib import Path
from types import TracebackType

import numpy as np


class ArrayFile:
    """One flat array of a type that is known; its length is written when it is closed."""

    def __init__(self, path: Path, dtype: str) -> None:
        self.dtype = dtype
        self.file = path.open("w+b")
        self.restart()

    def append(self, values: np.ndarray) -> None:
        """Write ``values`` behind those that are there."""
        self.file.write(values.astype(self.dtype, copy=False).data)
        self.length += len(values)

    def restart(self) -> None:
        """Forget all values."""
        self.file.truncate(0)
        self.length = 0
        self.write_header()

    def write_header(self) -> None:
        """NumPy leaves room for the length, so that a header is as long whatever it says."""
        self.file.seek(0)
        header = {"descr": self.dtype, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self.file, header)

    def __enter__(self) -> "ArrayFile":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.write_header()
        self.file.close()
