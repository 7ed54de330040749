"""Files of PyTorch's weights are read as arrays; whatever else they hold is one line, and runs nothing."""

import pickle
import struct

import numpy as np
import pytest

from metajax.data.files.torch_weights import read_torch_weights
from metajax.errors import DataError

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
MACHINE = {"protocol_version": 1001, "little_endian": True}


def plain(value):
    """Instructions that make a constant."""
    return pickle.dumps(value, 2)[2:-1]


def tensor(key="0", size=6, offset=0, shape=(2, 3), strides=(3, 1), kind="FloatStorage"):
    """Instructions that make a tensor."""
    named = b"(" + plain("storage") + f"ctorch\n{kind}\n".encode()
    storage = named + plain(key) + plain("cpu") + plain(size) + b"NtQ"
    rest = plain(offset) + plain(shape) + plain(strides) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"


def program(instructions):
    return b"\x80\x02" + instructions + b"."


def file(tensors, storages, *, magic=MAGIC, version=VERSION, machine=MACHINE, keys=None):
    """Writes a file of tensors, instructions by name, and of storages, arrays by key."""
    pairs = b"".join(plain(name) + each + b"s" for name, each in tensors.items())
    parts = [plain(magic), plain(version), plain(machine), b"ccollections\nOrderedDict\n)R" + pairs]
    content = b"".join(map(program, [*parts, plain(list(storages) if keys is None else keys)]))
    for numbers in storages.values():
        content += struct.pack("<q", len(numbers)) + numbers.tobytes()
    return content


SIX = {"0": np.arange(6, dtype=np.float32)}
GOOD = file({"weight": tensor()}, SIX)


def test_tensors_are_the_numbers_of_their_storages():
    tensors = {
        "whole": tensor(),
        "turned": tensor(shape=(3, 2), strides=(1, 3)),
        "last": tensor(offset=4, shape=(2,), strides=(1,)),
        "count": tensor("1", 1, 0, (), (), "LongStorage"),
    }
    found = read_torch_weights(file(tensors, {**SIX, "1": np.array([7], np.int64)}))
    assert list(found) == list(tensors)
    np.testing.assert_array_equal(found["whole"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(found["turned"], [[0, 3], [1, 4], [2, 5]])
    np.testing.assert_array_equal(found["last"], [4, 5])
    assert found["count"] == 7 and found["count"].dtype == np.int64
    assert found["whole"].dtype == np.float32 and found["whole"].flags.writeable


def test_a_file_that_is_cut_anywhere_is_one_line():
    for end in range(len(GOOD)):
        with pytest.raises(DataError, match=r"^the weights cannot be read: [^\n]*$"):
            read_torch_weights(GOOD[:end])


def test_flipped_bits_are_one_line_or_other_numbers():
    rng = np.random.default_rng(0)
    for place in rng.integers(len(GOOD), size=400):
        broken = bytearray(GOOD)
        broken[place] ^= 1 << rng.integers(8)
        try:
            found = read_torch_weights(bytes(broken))
        except DataError as error:
            assert "\n" not in str(error)
        else:
            assert all(isinstance(each, np.ndarray) and each.size <= 6 for each in found.values())


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        (b"cposix\nsystem\n(" + plain("touch BAD") + b"tR", r"posix\.system.*no tensor"),
        (b"cbuiltins\neval\n(" + plain("1") + b"tR", r"builtins\.eval.*no tensor"),
        (b"ctorch\nload\n", r"torch\.load.*no tensor"),
        (b"ctorch.storage\n_load_from_bytes\n", "_load_from_bytes.*no tensor"),
        (b"ccollections\nOrderedDict\n(" + plain(1) + b"tR", "damaged, TypeError"),
        (b"\x8c\x05posix\x8c\x06system\x93", "instruction SHORT_BINUNICODE"),
        (b"(" + plain("BAD") + b"iposix\nsystem\n", "instruction INST"),
        (b"\x82\x01", "instruction EXT1"),
        (b"Nr\xff\xff\xff\x7f", "memo of 2147483647 entries"),
        (plain("text"), "no dictionary of tensors"),
        (b"ctorch\nFloatStorage\n", "no dictionary of tensors"),
        (b"(" + plain("module") + b"tQ", "damaged, ValueError"),
    ],
)
def test_a_hostile_program_is_refused_and_runs_nothing(
    instructions, message, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=message) as found:
        read_torch_weights(file({"weight": instructions}, SIX))
    assert "\n" not in str(found.value)
    assert not list(tmp_path.iterdir())


def test_a_file_cannot_change_how_the_next_one_is_read():
    # BUILD sets attributes of what it finds, here of the function that rebuilds tensors.
    changed = b"ctorch._utils\n_rebuild_tensor_v2\n}(" + plain("__defaults__") + plain((1,)) + b"ub"
    with pytest.raises(DataError):
        read_torch_weights(file({"weight": changed}, SIX))
    np.testing.assert_array_equal(read_torch_weights(GOOD)["weight"], [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"shape": (10**9, 10**9)}, "more numbers than the file"),
        ({"shape": (10**12,), "strides": (0,)}, "more numbers than the file"),
        ({"shape": (50,), "strides": (0,)}, "not within its storage of 6"),
        ({"offset": 1}, "not within its storage of 6"),
        ({"offset": -1}, "no whole numbers"),
        ({"strides": (-3, 1)}, "no whole numbers"),
        # Multiplied, it would be a text of 32 GB.
        ({"shape": ("a", 2**35)}, "no whole numbers"),
        ({"strides": (3,)}, "not within its storage of 6"),
        ({"shape": (True, 3)}, "no whole numbers"),
        ({"size": 10**12}, "has 6 numbers, and its tensors say 1000000000000"),
        ({"size": -1}, "no known kind"),
        ({"kind": "load"}, r"torch\.load"),
        ({"key": "9"}, "lists 1 storages"),
    ],
)
def test_tensors_stay_within_their_storages(given, message):
    with pytest.raises(DataError, match=message):
        read_torch_weights(file({"weight": tensor(**given)}, SIX))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no dictionary of tensors that PyTorch wrote before 1.6"),
        (b"PK\x03\x04", "no dictionary of tensors that PyTorch wrote before 1.6"),
        (GOOD + b"\0", "more in the file than its tensors"),
        (file({"weight": tensor()}, SIX, version=7), "version 7"),
        (file({"weight": tensor()}, SIX, version="7"), "version is no number"),
        (file({"weight": tensor()}, SIX, machine={"little_endian": False}), "big-endian"),
        (file({"weight": tensor()}, SIX, keys=["0", "0"]), "lists 2 storages"),
    ],
)
def test_other_files_are_refused(content, message):
    with pytest.raises(DataError, match=message):
        read_torch_weights(content)
