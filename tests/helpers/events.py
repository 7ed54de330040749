"""Reads TensorBoard's event files."""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def events(workdir: Path) -> Iterator[Any]:
    """Yields the events of a work directory.

    Args:
      workdir: Work directory of a run.

    Yields:
      Events in the order in which TensorBoard reads them.
    """
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted((workdir / "tensorboard").iterdir()):
        data = path.read_bytes()
        while data:  # the length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def shown(workdir: Path) -> dict[tuple[str, int], Any]:
    """Finds what TensorBoard shows of a work directory.

    Args:
      workdir: Work directory of a run.

    Returns:
      Values by tag and step.
    """
    found = {}
    for event in events(workdir):
        if event.HasField("session_log"):  # TensorBoard's own rule: drop this step and all after.
            found = {key: value for key, value in found.items() if key[1] < event.step}
        found |= {(value.tag, event.step): value for value in event.summary.value}
    return found
