"""What numbers are recorded with: lines of CSV, and TensorBoard's event files. Scalars need no torch."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from marl.runfolder import spelt


def csv_text(rows: Iterable[Sequence[Any]]) -> bytes:
    """CSV lines; floats are written so that equal bits give equal text and the text gives the bits back."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


class EventFile:
    """One TensorBoard event file, written in the caller's thread: no thread per member, and disk errors surface here.

    Args:
        folder: the TensorBoard run's.
        purge: TensorBoard forgets what earlier files of the folder hold for this step and later ones; None: nothing.
    """

    def __init__(self, folder: Path, purge: int | None) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2  # type: ignore[import-untyped]
        from tensorboard.summary.writer.record_writer import RecordWriter  # type: ignore[import-untyped]

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        folder.mkdir(parents=True, exist_ok=True)
        numbers = [int(path.name.split(".")[3]) for path in folder.glob("events.out.tfevents.*.marl")]
        index = max(numbers, default=-1) + 1  # TensorBoard reads the files in the order of names
        self._file = RecordWriter((folder / f"events.out.tfevents.{index:010d}.marl").open("xb"))
        self._add(0, file_version="brain.Event:2")
        if purge is not None:
            for _ in range(2):  # TensorBoard's reader in Python takes the first START of a run for no restart
                self._add(purge, session_log={"status": "START"})

    def scalar(self, step: int, tag: str, value: float) -> None:
        self._add(step, summary=self._summary(value=[{"tag": tag, "simple_value": value}]))

    def text(self, tag: str, markdown: str) -> None:
        from torch.utils.tensorboard.summary import text

        self._add(0, summary=text(tag, spelt(markdown)))

    def hyper_parameters(self, values: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """What the HPARAMS page shows; the metrics are looked up among the scalars."""
        from torch.utils.tensorboard.summary import hparams

        plain = {key: value if isinstance(value, float | int) else spelt(str(value)) for key, value in values.items()}
        for part in hparams(plain, dict.fromkeys(metrics, 0.0)):
            self._add(0, summary=part)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _add(self, step: int, **content: Any) -> None:
        self._file.write(self._event(wall_time=time.time(), step=step, **content).SerializeToString())
