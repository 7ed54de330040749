"""Files of weights that PyTorch has written, read as arrays and nothing else.

Such a file is a program for Python's pickle, which could call any function. Here a program may consist of few
instructions, and name nothing but tensors, their storages and ordered dictionaries; all else is an error
before anything of it has run.
"""

import io
import math
import pickle
import pickletools
from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np

from metajax.errors import DataError
from metajax.names import shown

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001
_TYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
}
# What dictionaries of tensors are written with: constants, tuples, lists and dictionaries, the memo, names
# (GLOBAL), calls (REDUCE) and storages (BINPERSID). BUILD sets the attribute `_metadata` of a dictionary.
_INSTRUCTIONS = frozenset(
    (
        *("PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "LONG1", "BININT", "BININT1"),
        *("BININT2", "BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
        *("EMPTY_LIST", "APPEND", "APPENDS", "EMPTY_DICT", "SETITEM", "SETITEMS"),
        *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
        *("GLOBAL", "REDUCE", "BINPERSID", "BUILD"),
    )
)


class _Storage(NamedTuple):
    """A block of numbers that follows in the file."""

    key: str
    type: str
    size: int


class _Tensor(NamedTuple):
    """A tensor: which numbers of a storage it has."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_weights(content: bytes) -> dict[str, np.ndarray]:
    """Reads a dictionary of tensors that `torch.save` wrote before PyTorch 1.6.

    Args:
      content: Content of the file, .pth or .pt.

    Returns:
      Arrays by name.

    Raises:
      DataError: If it is another kind of file, is damaged, or has anything but tensors.

    Example:
      >>> try:
      ...     read_torch_weights(b"no weights")
      ... except metajax.errors.DataError as error:
      ...     print(error)
      the weights cannot be read: the file is no dictionary of tensors that PyTorch wrote before 1.6
    """
    try:
        return _read(content)
    except Exception as error:  # a damaged file can break pickle in any way
        reason = f"{error}" if isinstance(error, DataError) else f"damaged, {error!r}"
        raise DataError(f"the weights cannot be read: {shown(reason, 300)}") from error


def _read(content: bytes) -> dict[str, np.ndarray]:
    """Reads the parts of the file one after another; raises any exception if it is damaged."""
    file = io.BytesIO(content)
    if not content.startswith(pickle.dumps(_MAGIC, 2)):
        raise DataError("the file is no dictionary of tensors that PyTorch wrote before 1.6")
    _, version, machine = (_load(file) for _ in range(3))
    # The text of what a hostile file nests may be longer than the memory.
    if type(version) is not int:
        raise DataError("its version is no number")
    if version != _VERSION or machine["little_endian"] is not True:
        raise DataError(f"the file is of version {version} or of a big-endian machine")
    tensors, keys = _load(file), _load(file)
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(each, _Tensor) for name, each in tensors.items()
    ):
        raise DataError("the file is no dictionary of tensors")
    storages = {each.storage.key: each.storage for each in tensors.values()}
    if set(keys) != set(storages) or len(keys) != len(storages):
        raise DataError(f"it lists {len(keys)} storages, and its tensors have {len(storages)}")
    numbers = {key: _numbers(file, storages[key]) for key in keys}
    if file.read(1):
        raise DataError("there is more in the file than its tensors")
    # Tensors may share a storage; all together have no more numbers than the file.
    if sum(math.prod(each.shape) for each in tensors.values()) > len(content):
        raise DataError("its tensors have more numbers than the file")
    return {name: _array(name, each, numbers[each.storage.key]) for name, each in tensors.items()}


def _numbers(file: io.BytesIO, storage: _Storage) -> np.ndarray:
    """Reads the numbers of a storage, with their count before them."""
    count = int.from_bytes(file.read(8), "little")
    dtype = np.dtype(_TYPES[storage.type]).newbyteorder("<")
    if count != storage.size:
        raise DataError(
            f"storage {shown(storage.key)} has {count} numbers, and its tensors say {storage.size}"
        )
    found = file.read(count * dtype.itemsize)
    if len(found) != count * dtype.itemsize:
        raise DataError(f"the file ends within storage {shown(storage.key)}")
    return np.frombuffer(found, dtype)


def _array(name: str, tensor: _Tensor, numbers: np.ndarray) -> np.ndarray:
    """Takes the numbers of a tensor; its strides have to stay within the storage."""
    fits = len(tensor.shape) == len(tensor.strides)
    if fits and all(tensor.shape):
        pairs = zip(tensor.shape, tensor.strides, strict=True)
        fits = tensor.offset + sum((side - 1) * stride for side, stride in pairs) < len(numbers)
    if not fits or math.prod(tensor.shape) > len(numbers):
        raise DataError(
            f"the tensor {shown(name)} of shape {list(tensor.shape)} is not within its storage of "
            f"{len(numbers)} numbers"
        )
    strides = [stride * numbers.itemsize for stride in tensor.strides]
    start = numbers[tensor.offset :]
    return np.lib.stride_tricks.as_strided(start, tensor.shape, strides, writeable=False).copy()


def _load(file: io.BytesIO) -> Any:
    """Runs the next program of the file, if it consists of harmless instructions alone."""
    start = file.tell()
    for instruction, argument, _ in pickletools.genops(file):
        if instruction.name not in _INSTRUCTIONS:
            raise DataError(
                f"the file has the instruction {instruction.name}, which no tensor needs"
            )
        # The memo is a table as long as its largest number.
        if instruction.name == "LONG_BINPUT" and (argument or 0) > len(file.getbuffer()):
            raise DataError(f"the file has a memo of {argument} entries")
    end = file.tell()
    file.seek(start)
    found = _Reader(io.BytesIO(file.read(end - start))).load()
    file.seek(end)
    return found


class _Reader(pickle.Unpickler):
    """An unpickler that knows four names, and makes tensors and dictionaries of them."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands for a name of the file."""

        def rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> _Tensor:
            del rest  # whether it has a gradient, and hooks
            if not isinstance(storage, _Storage):
                raise DataError("a tensor has no storage")
            shape, strides = tuple(shape), tuple(strides)
            # Before anything is multiplied by them: a text times a number may be longer than the memory.
            if not all(type(value) is int and value >= 0 for value in (offset, *shape, *strides)):
                raise DataError("a tensor has an offset, a shape or strides of no whole numbers")
            return _Tensor(storage, offset, shape, strides)

        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return rebuild  # a new function for each file, so that none can change another's
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _TYPES:
            return name
        raise DataError(f"the file names {shown(f'{module}.{name}')}, which is no tensor")

    def persistent_load(self, pid: Any) -> _Storage:
        """Returns the storage that the file names."""
        kind, type_, key, _, count, view = pid
        whole = type(count) is int and count >= 0 and isinstance(key, str)
        if kind != "storage" or type_ not in _TYPES or view is not None or not whole:
            raise DataError("a storage of the file is of no known kind")
        return _Storage(key, type_, count)
