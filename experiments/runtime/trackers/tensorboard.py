"""TensorBoard events: scalars, hyper-parameters and pictures, in the work directory."""

import contextlib
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..files import writing
from ..observers import Observer, Run
from .once import test_numbers


class TensorBoard(Observer):
    """Event files in `workdir/tensorboard`.

    They are written in this thread: another one would end unnoticed at a full disk.
    """

    name = "TensorBoard"

    def begin(self, run: Run) -> None:
        """Starts an event file with the hyper-parameters.

        Args:
          run: The run; TensorBoard hides the points of earlier event files after its step.

        Raises:
          WriteError: If the disk does not accept it.
        """
        from tensorboardX.summary import hparams

        self._folder, self._last = run.workdir / "tensorboard", run.step
        self._open(run.step)
        given = {k: v for k, v in run.settings.items() if isinstance(v, bool | int | float | str)}
        shown = {f"valid/{run.score}": 0, f"test/{run.score}": 0}
        # Written at once, so that runs can be compared while they train; the last one marks the end.
        *now, self._ended = hparams(given, shown)
        self._append(*(_event(summary=summary) for summary in now))

    def scalars(self, step: int, split: str, values: Mapping[str, Any]) -> None:
        """Appends scalars; values that are not finite are left out, as TensorBoard cannot draw them.

        Args:
          step: Meta-step of the row.
          split: Name of the split.
          values: Numbers by metric name.

        Raises:
          WriteError: If the disk does not accept them.
        """
        from tensorboardX.summary import scalar

        if not self._path.exists():
            self._close()
            self._open(step - 1)
        self._last = step
        finite = {f"{split}/{k}": float(v) for k, v in values.items() if np.isfinite(v)}
        self._append(*(_event(step=step, summary=scalar(*each)) for each in finite.items()))

    def file(self, path: Path, *, kind: str) -> None:
        """Appends a picture as it is encoded; other files stay where they are.

        Args:
          path: File.
          kind: Kind of the file.
        """
        if kind != "picture":
            return
        from PIL import Image
        from tensorboardX.proto.summary_pb2 import Summary

        with Image.open(path) as picture:
            width, height = picture.size
        image = Summary.Image(
            width=width, height=height, colorspace=3, encoded_image_string=path.read_bytes()
        )
        summary = Summary(value=[Summary.Value(tag=path.stem, image=image)])
        self._append(_event(step=self._last, summary=summary))

    def end(self, result: Mapping[str, Any] | None) -> None:
        """Appends the test's numbers, and closes the file.

        Args:
          result: Fields of result.json; None if the run stopped before.
        """
        if result is not None:
            self.scalars(int(result["steps"]), "test", test_numbers(result))
            self._append(_event(summary=self._ended))
        self._close()

    def _close(self) -> None:
        """Closes the file; what a full disk refused before is refused again here, and was reported then."""
        with contextlib.suppress(OSError):
            self._records.close()

    def _open(self, resume_step: int) -> None:
        """Starts an event file, and purges the points of earlier ones after a step."""
        from tensorboardX.proto.event_pb2 import SessionLog
        from tensorboardX.record_writer import RecordWriter

        # The name has a resolution of a second; a quick restart must not overwrite the previous file.
        name = (
            f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{resume_step:012}"
        )
        self._path = self._folder / name
        with writing(self._path):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._records = RecordWriter(str(self._path))
        self._append(
            _event(file_version="brain.Event:2"),
            _event(step=resume_step + 1, file_version="brain.Event:2"),
            _event(step=resume_step + 1, session_log=SessionLog(status=SessionLog.START)),
        )

    def _append(self, *events: bytes) -> None:
        """Writes serialized events and flushes them."""
        with writing(self._path):
            for event in events:
                self._records.write(event)
            self._records.flush()


def _event(**fields: Any) -> bytes:
    """Serializes an event with the current time."""
    from tensorboardX.proto.event_pb2 import Event

    return Event(wall_time=time.time(), **fields).SerializeToString()
