"""What writers for trackers of runs have in common."""

from __future__ import annotations

import logging
import sys
import time
from abc import abstractmethod
from collections import defaultdict
from pathlib import Path

import numpy as np
import yaml
from detectron2.utils.events import EventWriter, get_event_storage

from d2kd.checkpoint import whole_file
from d2kd.modeling.distillation import preflight

__all__ = ["RunWriter"]

logger = logging.getLogger(f"detectron2.{__name__}")

#: The parts of a config by which people compare runs; the whole file goes along.
_COMPARED = ("train.", "optimizer.", "lr_multiplier.", "dataloader.train.total_batch_size", "model.losses.")


class RunWriter(EventWriter):
    """
    Writes a run to a tracker: its config, what the preflight says of the teacher, all scalars, and the sheets of
    ``train.vis_period``. A run that is resumed goes on in the tracker, too: its id there is kept in ``output_dir``.
    Iterations after its checkpoint that the tracker has are not written again.

    A tracker that fails is logged, and does not stop training. Nor does one that keeps training waiting: it is left
    alone for ten times as long as it took to fail.

    Args:
        tracker: its name.
        output_dir: ``train.output_dir``.
        window_size: scalars are the median of as many iterations.
    """

    def __init__(self, tracker: str, output_dir: str, window_size: int = 20) -> None:
        self._tracker, self._output, self._window = tracker, Path(output_dir), window_size
        #: The last iteration that the tracker has.
        self.written = -1
        self._next_try = 0.0
        record = self._output / f"{tracker}_run.txt"
        before = record.read_text().strip() if record.is_file() else None
        run_id = self.begin(before)
        self._heard = _Heard()
        preflight.logger.addHandler(self._heard)
        if run_id != before:
            with whole_file(record) as partial:
                partial.write_text(run_id)
            config = self._output / "config.yaml"
            if config.is_file():
                node = yaml.compose(config.read_text())
                leaves = {} if node is None else dict(_leaves(node, ""))
                self.log_config({k: v for k, v in leaves.items() if k.startswith(_COMPARED)}, config)

    @abstractmethod
    def begin(self, run_id: str | None) -> str:
        """
        Begin a run, or go on with the run ``run_id`` if the tracker still has it, and set ``written`` if it is known;
        returns its id.
        """

    @abstractmethod
    def log_config(self, values: dict[str, str], file: Path) -> None:
        """
        Args:
            values: of dotted keys.
            file: the whole config.
        """

    @abstractmethod
    def log_text(self, name: str, text: str) -> None: ...

    @abstractmethod
    def log_scalars(self, values: dict[str, float], iteration: int) -> None: ...

    @abstractmethod
    def log_image(self, name: str, image: np.ndarray, iteration: int) -> None:
        """
        Args:
            image: (H, W, 3) uint8, RGB.
        """

    @abstractmethod
    def finish(self, *, failed: bool) -> None:
        """
        Args:
            failed: an error or a signal ended the run.
        """

    def write(self) -> None:
        begun = time.monotonic()
        if begun < self._next_try:
            return
        storage, before = get_event_storage(), self.written
        scalars: dict[int, dict[str, float]] = defaultdict(dict)
        for name, (value, iteration) in storage.latest_with_smoothing_hint(self._window).items():
            if iteration > before:
                scalars[iteration][name] = float(value)
        self.written = max([before, *scalars])
        try:
            if self._heard.messages:
                self.log_text("preflight", "\n".join(self._heard.messages))
                self._heard.messages.clear()
            for iteration, values in sorted(scalars.items()):
                self.log_scalars(values, iteration)
            for name, image, iteration in storage._vis_data:  # which it does not tell otherwise
                if iteration > before:
                    self.log_image(name, np.asarray(image).transpose(1, 2, 0), iteration)
        except Exception as error:  # each tracker has errors of its own, beside those of files and connections
            ended = time.monotonic()
            self._next_try = ended + 10 * (ended - begun)
            logger.warning(
                "%s has not got all of iteration %d, and gets nothing for the next %.0f s: %s",
                *(self._tracker, storage.iter, self._next_try - ended, error),
            )

    def close(self) -> None:
        preflight.logger.removeHandler(self._heard)
        try:
            self.finish(failed=sys.exc_info()[0] is not None)
        except Exception as error:
            logger.warning("%s does not know that the run has ended: %s", self._tracker, error)


class _Heard(logging.Handler):
    """Keeps what a logger says."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def _leaves(node: yaml.Node, path: str) -> list[tuple[str, str]]:
    """The dotted key and the text of each value of a config."""
    if isinstance(node, yaml.MappingNode):
        return [
            leaf for key, value in node.value for leaf in _leaves(value, f"{path}.{key.value}" if path else key.value)
        ]
    text = node.value if isinstance(node, yaml.ScalarNode) else " ".join(yaml.serialize(node).split())
    return [(path, text)]
