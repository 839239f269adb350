"""TensorBoard event files without TensorFlow: scalars and PNG images."""

import os
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

RGB = 3  # Summary.Image.colorspace


class EventFile:
    """One event file of a log directory; every event is on the disk when its call returns.

    Args:
      directory: TensorBoard log directory, made when missing.
      start_step: step this process goes on from; TensorBoard drops what an earlier process wrote after it.
    """

    def __init__(self, directory: str | os.PathLike[str], start_step: int = 0):
        path = Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        # The name begins with the second; of two processes in one second, the later must come later.
        self._writer = EventsWriter(str(path / "events"), f".{time.time_ns()}.{os.getpid()}")
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

    def _write(self, step: int, **content: SessionLog | Summary) -> None:
        self._writer.write_event(Event(wall_time=time.time(), step=step, **content))
        self._writer.flush()
