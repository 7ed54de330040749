"""Several processes as one run: they start alike, agree on every decision, and the first one writes.

Every function here that exchanges values is collective: all processes call it, in the same order. With one
process these functions do nothing.
"""

import collections
import contextlib
import hashlib
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from ..flags.settings import TrainingError, UsageError
from ..flags.training import DeviceOptions, check_processes
from .parting import Parting

Value = TypeVar("Value")

# A lost process is noticed by the others after this many seconds at most: at once if they wait for it in a
# collective over sockets, else by its missing heartbeats.
HEARTBEAT_SECONDS = 30

MAX_PORT = 65_535

# At most 5 digits: int() refuses numbers of thousands of digits.
_ADDRESS = re.compile(
    r"(?:\[(?P<address>[0-9a-fA-F:.]+(?:%\w+)?)\]|(?P<host>[^\s:/\[\]]{1,253})):(?P<port>[0-9]{1,5})"
)

_PART_BYTES = 64 * 2**20  # size of one message from the first process to the others

# Exact types that JAX's collectives raise. This project's own errors are subclasses, complete as they are.
_RUNTIME_ERRORS = (ValueError, RuntimeError, jax.errors.JaxRuntimeError)

# Words of errors about other processes, as opposed to errors such as memory that ran out here.
_OF_PEERS = re.compile("gloo|nccl|socket|connection|coordination|UNAVAILABLE|DEADLINE", re.I)

# Words with which the runtime names lost processes.
_GONE = re.compile(r"stopped sending heartbeats\):\s*(\d+)")
_NO_FIRST = re.compile("the leader task was preempted")


class ElsewhereError(TrainingError):
    """An error of another process; the message names the process and the reason."""


def join(devices: DeviceOptions) -> None:
    """Joins the other processes of a run, if several are asked for; call it before JAX is used.

    From then on only the first process writes to standard output.

    Args:
      devices: Options of devices and processes.

    Raises:
      UsageError: If options contradict each other, or the other processes cannot be found.
    """
    check_processes(devices)
    if not devices.distributed:
        return
    # JAX's preemption service would take over SIGTERM, which the training loop handles itself.
    jax.config.update("jax_enable_preemption_service", False)
    by_hand = devices.coordinator and devices.num_processes and devices.process_id >= 0
    seconds = devices.join_seconds
    _check_address(devices)
    global _parting, _others
    _parting = Parting(
        lambda said: (
            f"Not all processes came within --join_seconds={seconds}{_reason(said)}. Start all of "
            "them, with the same --coordinator and --num_processes and a different --process_id each."
        )
    )
    try:
        jax.distributed.initialize(
            devices.coordinator or None,
            devices.num_processes or None,
            devices.process_id if devices.process_id >= 0 else None,
            # Otherwise a cluster's scheduler, if there is one, would choose this process's devices.
            cluster_detection_method="deactivate" if by_hand else None,
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"--distributed found no other processes{_reason(error)}; on Cloud TPU, Slurm and Open MPI it "
            "finds them by itself, elsewhere give all processes the same --coordinator=HOST:PORT and "
            "--num_processes, and each a different --process_id."
        ) from error
    _parting.explain = _gone
    _others = [i for i in range(jax.process_count()) if i != jax.process_index()]
    _parting.is_first = is_first()
    _check_devices()
    _parting.signals = 2  # Python handles the first signal as a request to stop
    # C++ libraries print too, such as Gloo about its connections, and so do the other processes: file
    # descriptor 1 becomes the null device, and only the first process's sys.stdout keeps the real one.
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    sys.stdout = open(kept if is_first() else nowhere, "w", encoding="utf-8")  # noqa: SIM115


def is_first() -> bool:
    """Checks whether this is the process that prints, writes and reads checkpoints.

    Returns:
      True in process 0.
    """
    return jax.process_index() == 0


def exchange(value: Any) -> list[Any]:
    """Sends a value to all processes.

    Args:
      value: Value that JSON can hold.

    Returns:
      The values of all processes, in their order.
    """
    if jax.process_count() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = process_allgather(np.int32(len(text)))
    # Padded to a power of two: each length compiles its own program.
    padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)
    padded[: len(text)] = text
    rows = process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def wait_for_all() -> None:
    """Waits until all processes are here.

    Call it before a newly compiled program runs for the first time: devices that never exchanged anything
      have
    30 seconds to connect, and one process may have read from its cache what another one compiles for minutes.
    """
    exchange(None)


def in_any(flag: bool) -> bool:
    """Checks whether a flag is set in any process.

    Args:
      flag: Flag of this process.

    Returns:
      Whether it is true in at least one process.
    """
    return any(exchange(bool(flag)))


def in_all(function: Callable[[], Value]) -> Value:
    """Calls a function in every process; if it raises in one, all processes raise.

    Args:
      function: Function without arguments that exchanges nothing.

    Returns:
      The result of this process's call.

    Raises:
      Exception: In processes whose own call raised, the exception itself.
      ElsewhereError: In processes whose own call succeeded.
    """
    if jax.process_count() == 1:
        return function()
    result = error = None
    try:
        result = function()
    except Exception as raised:  # any error: the others must not wait for this process
        error = raised
    try:
        stopped = exchange(None if error is None else str(error) or type(error).__name__)
    except Exception as lost:
        raise (error or lost) from None
    if error is not None:
        raise error
    for process, message in enumerate(stopped):
        if message is not None:
            raise ElsewhereError(f"process {process}: {message}")
    return result


def on_first(function: Callable[[], Value]) -> Value | None:
    """Calls a function in the first process alone; the others wait for it, and raise if it raises.

    Args:
      function: Function without arguments that exchanges nothing.

    Returns:
      Result in the first process, None in the others.
    """
    return in_all(lambda: function() if is_first() else None)


def from_first(tree: Any) -> Any:
    """Sends the first process's arrays to all processes, bit for bit.

    Args:
      tree: Pytree of arrays, random keys and numbers, with the same structure, shapes and dtypes in all
        processes.

    Returns:
      The first process's tree, with numpy arrays and random keys as leaves.
    """
    if jax.process_count() == 1:
        return tree
    from jax.experimental.multihost_utils import broadcast_one_to_all

    leaves, structure = jax.tree.flatten(tree)
    is_key = [
        hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        for leaf in leaves
    ]
    arrays = []
    for leaf, key in zip(leaves, is_key, strict=True):
        if is_first():
            arrays.append(np.asarray(jax.random.key_data(leaf) if key else leaf))
        else:  # only the shape is needed: an array sharded over processes cannot be read here
            like = jax.eval_shape(jax.random.key_data, leaf) if key else leaf
            arrays.append(np.zeros(np.shape(like), jax.numpy.result_type(like)))
    # As bytes: the broadcast is a sum with zeros, and -0.0 + 0.0 is 0.0.
    own = np.concatenate([np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in arrays])
    # In parts: each is on one device whole, where a sharded state might not fit.
    parts = [own[i : i + _PART_BYTES] for i in range(0, len(own), _PART_BYTES)]
    found = np.concatenate([np.asarray(broadcast_one_to_all(part)) for part in parts])
    start = 0
    for i, array in enumerate(arrays):
        part = found[start : start + array.nbytes].copy()
        arrays[i] = part.view(array.dtype).reshape(array.shape)
        start += array.nbytes
    return structure.unflatten(
        jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf)) if key else array
        for array, leaf, key in zip(arrays, leaves, is_key, strict=True)
    )


def check_same(facts: Mapping[str, Any], *, remedy: str = "start all of them alike") -> None:
    """Checks that all processes were started alike.

    Args:
      facts: Values that JSON can hold, by name: flags, and whatever else must be equal.
      remedy: End of the error message.

    Raises:
      UsageError: If a value differs; in every process, with the first difference.
    """
    first, *others = exchange(dict(facts))
    for process, other in enumerate(others, 1):
        for name in {**first, **other}:
            if first.get(name) != other.get(name):
                one, two = (_shortened(facts.get(name)) for facts in (first, other))
                raise UsageError(
                    f"{name} is {one} in process 0 and {two} in process {process}; {remedy}."
                )


def _shortened(value: Any) -> Any:
    """Shortens a digest, or several joined by dots; returns other values as they are."""
    is_digest = isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}(\.[0-9a-f]{64})*", value)
    return f"{value[:12]}..." if is_digest else value


def source_sha256() -> str:
    """Hashes the source code of the library and the experiments, which must be the same in all processes.

    Returns:
      A SHA-256 digest in hexadecimal digits.
    """
    import metajax

    digest = hashlib.sha256()
    for package in (Path(metajax.__file__).parent, Path(__file__).parents[1]):
        for path in sorted(package.rglob("*.py")):
            digest.update(path.relative_to(package).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def watching():
    """Turns an error of JAX's collectives that reports a lost process into one line that names the process.

    Raises:
      TrainingError: If such an error is raised within the context.
    """
    try:
        yield
    except _RUNTIME_ERRORS as error:
        if (
            type(error) not in _RUNTIME_ERRORS
            or not is_joined()
            or not _OF_PEERS.search(str(error))
        ):
            raise
        raise TrainingError(_gone(str(error))) from error


def remember_saved(step: int) -> None:
    """Remembers the step of the last checkpoint, for the message if another process is lost.

    Args:
      step: Step of the checkpoint.
    """
    global _saved
    _saved = step


def is_joined() -> bool:
    """Checks whether this process is one of several.

    Returns:
      Whether `join` has joined others.
    """
    return jax.distributed.is_initialized()


def leave(status: int, line: str) -> None:
    """Ends this process if it is one of several: a usual exit would wait for the others.

    Args:
      status: Exit status.
      line: Last line on stderr; "" for none.
    """
    if is_joined():
        with contextlib.suppress(Exception):  # a handler may interrupt another write
            sys.stdout.flush()
        _parting.end(status, line)


def over(status: int) -> None:
    """Sets the exit status of this process, even if the runtime aborts it because others ended too.

    Args:
      status: Exit status.
    """
    if is_joined():
        with contextlib.suppress(Exception):  # a handler may interrupt another write
            sys.stdout.flush()
        _parting.over(status)


_parting: Parting | None = None
_others: list[int] = []
_saved: int | None = None


def _gone(said: str) -> str:
    """Describes which process was lost, as far as JAX's message names it, and how to continue."""
    step = "what is saved" if _saved is None else f"step {_saved:,}"
    listed = _GONE.search(said)
    if listed or _NO_FIRST.search(said):
        who = f"Process {listed[1] if listed else 0}"
    else:
        who = f"Process {_others[0]}" if len(_others) == 1 else "Another process"
    return (
        f"{who} is gone or cannot be reached{_reason(said)}. Start every process again with the same "
        f"command: they continue from {step}."
    )


def _reason(said: str | Exception) -> str:
    """Formats the start of JAX's message in parentheses after a space; "" for an empty message."""
    text = str(said).partition("absl::Status: ")[2] or str(said)
    words = " ".join(text.partition("***")[0].split())
    if not words:
        return ""
    return f" ({words})" if len(words) <= 160 else f" ({words[:157]}...)"


def _check_devices() -> None:
    """Checks that all processes have equally many devices; JAX cannot exchange arrays otherwise."""
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"process {process} has {counts[process]}" for process in sorted(counts))
        raise UsageError(
            f"All processes need the same number of devices, and {listed}; on CPUs set JAX_NUM_CPU_DEVICES "
            "to the same number everywhere."
        )


def _check_address(devices: DeviceOptions) -> None:
    """Checks the coordinator's address; with a wrong one JAX would wait long, or crash.

    Raises:
      UsageError: If it is not an address, its host is unknown, or its port is in use.
    """
    if not devices.coordinator:
        return
    found = _ADDRESS.fullmatch(devices.coordinator)
    if not found or not 1 <= int(found["port"]) <= MAX_PORT:
        raise UsageError(
            f"--coordinator={devices.coordinator[:100]} is not HOST:PORT with a port from 1 to {MAX_PORT:,};"
            " use one such as 10.0.0.1:1234 or [fd00::1]:1234."
        )
    host, port = found["address"] or found["host"], int(found["port"])
    try:
        socket.getaddrinfo(host, port)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"The host of --coordinator={devices.coordinator} is unknown; use a name or an address that "
            "every process can resolve."
        ) from error
    if devices.process_id == 0:
        family = socket.AF_INET6 if found["address"] else socket.AF_INET
        try:  # on all addresses of this machine, as JAX will
            socket.create_server(("", port), family=family).close()
        except OSError as error:
            raise UsageError(
                f"The port of --coordinator={devices.coordinator} cannot be opened ({error.strerror}); use "
                "another one, the same in all processes."
            ) from error
