"""Several processes as one run: they start alike, agree on what to do, and the first one speaks for all.

Every function here that exchanges something is to be called by all processes, in the same order. With one
process none of them does anything.
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

from experiments.flags.settings import TrainingError, UsageError
from experiments.flags.training import DeviceOptions, check_processes
from experiments.runtime.parting import Parting

Value = TypeVar("Value")

# A process that is gone is noticed by the others after this many seconds at most: at once where they wait
# for it in a collective over sockets, by its missing heartbeat elsewhere.
HEARTBEAT_SECONDS = 30

MAX_PORT = 65_535

# A port of few digits: int() refuses thousands.
_ADDRESS = re.compile(
    r"(?:\[(?P<address>[0-9a-fA-F:.]+(?:%\w+)?)\]|(?P<host>[^\s:/\[\]]{1,253})):(?P<port>[0-9]{1,5})"
)

_PART_BYTES = 64 * 2**20  # of what the first process sends to the others at once

# What JAX's collectives raise; the errors of this project are subclasses, and have said all there is to say.
_RUNTIME_ERRORS = (ValueError, RuntimeError, jax.errors.JaxRuntimeError)

# How these tell of other processes, as against memory that ran out here.
_OF_PEERS = re.compile("gloo|nccl|socket|connection|coordination|UNAVAILABLE|DEADLINE", re.I)

# How the runtime names those that are gone.
_GONE = re.compile(r"stopped sending heartbeats\):\s*(\d+)")
_NO_FIRST = re.compile("the leader task was preempted")


class ElsewhereError(TrainingError):
    """What another process has stopped at; its message says which one and why."""


def join(devices: DeviceOptions) -> None:
    """Joins the other processes of a run, if flags say that there are any; call it before JAX is used.

    From then on only the first process writes to standard output.

    Raises:
      UsageError: if the flags do not go together, or the others cannot be found.
    """
    check_processes(devices)
    if not devices.distributed:
        return
    # That service would take SIGTERM from here on, and nothing here asks it: the training loop does its own.
    jax.config.update("jax_enable_preemption_service", False)
    by_hand = devices.coordinator and devices.num_processes and devices.process_id >= 0
    seconds = devices.join_seconds
    _check_address(devices)
    global _parting, _others
    _parting = Parting(
        lambda said: (
            f"Not all processes came within --join_seconds={seconds}{_reason(said)}. Start all of "
            "them, with the same --coordinator and --num_processes and each a --process_id of its own."
        )
    )
    try:
        jax.distributed.initialize(
            devices.coordinator or None,
            devices.num_processes or None,
            devices.process_id if devices.process_id >= 0 else None,
            # Or a scheduler that is there too would say which devices are this process's.
            cluster_detection_method="deactivate" if by_hand else None,
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise UsageError(
            f"--distributed found no other processes{_reason(error)}; on Cloud TPU, Slurm and Open MPI it "
            "finds them by itself, elsewhere give each process the same --coordinator=HOST:PORT and "
            "--num_processes, and a --process_id of its own."
        ) from error
    _parting.explain = _gone
    _others = [i for i in range(jax.process_count()) if i != jax.process_index()]
    _parting.is_first = is_first()
    _check_devices()
    _parting.signals = 2  # the first one asks to stop, or interrupts
    # What C++ prints, such as Gloo of its connections, and what the others print, goes nowhere.
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    sys.stdout = open(kept if is_first() else nowhere, "w", encoding="utf-8")  # noqa: SIM115


def is_first() -> bool:
    """Whether this process is the one that prints, writes and reads checkpoints."""
    return jax.process_index() == 0


def exchange(value: Any) -> list[Any]:
    """Tells all processes a value that JSON can hold; returns those of all, by process."""
    if jax.process_count() == 1:
        return [value]
    from jax.experimental.multihost_utils import process_allgather

    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = process_allgather(np.int32(len(text)))
    # To a power of two: each length is a program of its own.
    padded = np.zeros(1 << int(sizes.max()).bit_length(), np.uint8)
    padded[: len(text)] = text
    rows = process_allgather(padded)
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def wait_for_all() -> None:
    """Waits until all processes are here.

    Before a program that was just compiled runs for the first time: devices that never exchanged anything
    have 30 seconds to find each other, and one process may have read from its cache what takes another
    minutes.
    """
    exchange(None)


def in_any(flag: bool) -> bool:
    """Whether it is true in any process."""
    return any(exchange(bool(flag)))


def in_all(function: Callable[[], Value]) -> Value:
    """Calls a function that exchanges nothing in every process; where one raises, all do.

    Raises:
      ElsewhereError: in those whose own call went well.
    """
    if jax.process_count() == 1:
        return function()
    result = error = None
    try:
        result = function()
    except Exception as raised:  # whatever it is, the others must not wait for this process
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
    """Calls a function in the first process; the others wait for it, get None, and raise where it does."""
    return in_all(lambda: function() if is_first() else None)


def from_first(tree: Any) -> Any:
    """Gives every process the first one's arrays, bit for bit.

    Args:
      tree: arrays, random keys and numbers; in all processes of the same structure, shapes and types.

    Returns:
      The same of numpy arrays and keys.
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
        else:  # only its shape counts: it may be divided over processes, and not be here at all
            like = jax.eval_shape(jax.random.key_data, leaf) if key else leaf
            arrays.append(np.zeros(np.shape(like), jax.numpy.result_type(like)))
    # As bytes: the broadcast is a sum, in which -0.0 would become 0.0.
    own = np.concatenate([np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in arrays])
    # In parts: each lies on a device whole, where a state that is divided might not fit.
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
    """Refuses processes that were not started alike.

    Args:
      facts: name -> what JSON can hold: flags, and whatever else has to be the same.
      remedy: what to do where they differ.

    Raises:
      UsageError: in every process, with the first difference.
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
    """Cuts a digest, or several joined by dots, to its start; anything else stays."""
    is_digest = isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}(\.[0-9a-f]{64})*", value)
    return f"{value[:12]}..." if is_digest else value


def source_sha256() -> str:
    """Hashes the code of the library and the experiments, which has to be the same everywhere."""
    import metajax

    digest = hashlib.sha256()
    for package in (Path(metajax.__file__).parent, Path(__file__).parents[1]):
        for path in sorted(package.rglob("*.py")):
            digest.update(path.relative_to(package).as_posix().encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


@contextlib.contextmanager
def watching():
    """Says in one line that another process is gone, where an error of JAX's collectives tells of it.

    Raises:
      TrainingError: if it does.
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
    """Remembers the step of the last checkpoint, for what is said where another process is gone."""
    global _saved
    _saved = step


def is_joined() -> bool:
    """Whether this process is one of several."""
    return jax.distributed.is_initialized()


def leave(status: int, line: str) -> None:
    """Ends this process with a line on stderr if it is one of several: JAX would wait for the others."""
    if is_joined():
        with contextlib.suppress(Exception):  # a handler may run amid another write
            sys.stdout.flush()
        _parting.end(status, line)


def over(status: int) -> None:
    """Gives this process its exit status, whatever becomes of others that end as well."""
    if is_joined():
        with contextlib.suppress(Exception):  # a handler may run amid another write
            sys.stdout.flush()
        _parting.over(status)


_parting: Parting | None = None
_others: list[int] = []
_saved: int | None = None


def _gone(said: str) -> str:
    """Says which process is gone, as far as JAX's words tell, and how to go on."""
    step = "what is saved" if _saved is None else f"step {_saved:,}"
    listed = _GONE.search(said)
    if listed or _NO_FIRST.search(said):
        who = f"Process {listed[1] if listed else 0}"
    else:
        who = f"Process {_others[0]}" if len(_others) == 1 else "Another process"
    return (
        f"{who} is gone or cannot be reached{_reason(said)}. Start every process again with the same "
        f"command: they go on from {step}."
    )


def _reason(said: str | Exception) -> str:
    """The start of what JAX says, in brackets after a space; nothing if it says nothing."""
    text = str(said).partition("absl::Status: ")[2] or str(said)
    words = " ".join(text.partition("***")[0].split())
    if not words:
        return ""
    return f" ({words})" if len(words) <= 160 else f" ({words[:157]}...)"


def _check_devices() -> None:
    """Refuses processes of different numbers of devices, which JAX cannot exchange arrays between."""
    counts = collections.Counter(device.process_index for device in jax.devices())
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"process {process} has {counts[process]}" for process in sorted(counts))
        raise UsageError(
            f"All processes need as many devices, and {listed}; give each the same number, on CPUs by "
            "JAX_NUM_CPU_DEVICES."
        )


def _check_address(devices: DeviceOptions) -> None:
    """Refuses a coordinator's address that cannot be right: JAX would wait long, or crash.

    Raises:
      UsageError: if it is none, its host is unknown, or its port is taken.
    """
    if not devices.coordinator:
        return
    found = _ADDRESS.fullmatch(devices.coordinator)
    if not found or not 1 <= int(found["port"]) <= MAX_PORT:
        raise UsageError(
            f"--coordinator={devices.coordinator[:100]} is no HOST:PORT with a port from 1 to {MAX_PORT:,}; "
            "use one such as 10.0.0.1:1234 or [fd00::1]:1234."
        )
    host, port = found["address"] or found["host"], int(found["port"])
    try:
        socket.getaddrinfo(host, port)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"The host of --coordinator={devices.coordinator} is unknown; use a name or an address that "
            "every process finds."
        ) from error
    if devices.process_id == 0:
        family = socket.AF_INET6 if found["address"] else socket.AF_INET
        try:  # on all addresses of this machine, as JAX will
            socket.create_server(("", port), family=family).close()
        except OSError as error:
            raise UsageError(
                f"The port of --coordinator={devices.coordinator} is not to be had ({error.strerror}); use "
                "another one, the same in all processes."
            ) from error
