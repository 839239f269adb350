"""TensorBoard event files without TensorFlow: scalars and PNG images."""

import os
import re
import socket
import time
from collections.abc import Mapping

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter

from imagen_jax.files import GrowingFile, StrPath, as_path, files_under, make_dirs

RGB = 3  # Summary.Image.colorspace
_NAME = re.compile(r"events\.out\.tfevents\.(\d{10})\..*")


class EventFile:
    """One event file of a log directory; every event is on the disk when its call returns.

    One in a bucket follows from time to time, see `files.GrowingFile`.

    Args:
      directory: TensorBoard log directory, made when missing.
      start_step: step this process goes on from; TensorBoard drops what an earlier process wrote after it.
    """

    def __init__(self, directory: StrPath, start_step: int = 0):
        make_dirs(directory)
        # The second, as TensorBoard has it, which reads files by name: a later process must come later, also where the
        # clock was set back or both are of one second.
        there = map(_NAME.fullmatch, files_under(directory))
        second = max([int(time.time()), *(int(found[1]) + 1 for found in there if found)])
        name = f"events.out.tfevents.{second:010d}.{socket.gethostname()}.{os.getpid()}"
        self._file = GrowingFile(as_path(directory) / name)
        self._writer = RecordWriter(self._file.local)
        self._write(0, file_version="brain.Event:2")
        self._write(start_step + 1, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one point to every named curve."""
        points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        self._write(step, summary=Summary(value=points))

    def image(self, step: int, tag: str, png: bytes, height: int, width: int) -> None:
        """Adds one RGB image, given as the bytes of a PNG file."""
        image = Summary.Image(height=height, width=width, colorspace=RGB, encoded_image_string=png)
        self._write(step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
        self._file.close()

    def send(self) -> None:
        """Makes the events so far last, also those of a file in a bucket."""
        self._file.send()

    def _write(self, step: int, **content: SessionLog | Summary | str) -> None:
        self._writer.write(Event(wall_time=time.time(), step=step, **content).SerializeToString())
        self._writer.flush()
        self._file.grown()
