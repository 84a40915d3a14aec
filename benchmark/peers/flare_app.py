"""What does FLARE run in a null round? Its FedAvg, and a client that adds a constant.

``flare`` puts this file into a job; FLARE imports it in the server's process of the job, for the
workflow, and runs it as the training script in each client's. Nothing of fedreid is there.
"""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import nvflare.client as flare
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.workflows.fedavg import FedAvg

_STEP = 1e-3
_STEPS = 100
"""Of each client, by which FLARE weighs them."""


class NullRounds(FedAvg):  # type: ignore[misc]
    """FLARE's FedAvg as it is, from a random model; a round is timed until its mean would be saved.

    The mean is not saved: FLARE's persistors for NumPy take a single array.
    """

    def __init__(self, task: str, report: str) -> None:
        """Both are paths: of what to do, and of the file that gets a line after each round."""
        content: dict[str, Any] = json.loads(Path(task).read_text("utf-8"))
        self._silos: int = content["silos"]
        self._shapes: list[list[int]] = content["shapes"]
        super().__init__(num_clients=self._silos, num_rounds=content["rounds"], persistor_id="")
        self._report = report
        self._began_s = 0.0
        self._began_with = np.zeros(0)

    def run(self) -> None:
        """All rounds; what goes wrong is the report's last line."""
        try:
            super().run()
        except Exception as error:
            self._tell({"failed": f"{type(error).__name__}: {error}"})
            raise

    def load_model(self) -> FLModel:
        """A random one."""
        random = np.random.default_rng(0)
        arrays = [random.standard_normal(shape, dtype=np.float32) for shape in self._shapes]
        model = FLModel(params={f"tensor-{index:04}": a for index, a in enumerate(arrays)})
        self._began_with = _firsts(model)
        return model

    def event(self, event_type: str) -> None:
        """Called before a round's first message is sent, among much else."""
        if event_type == AppEventType.ROUND_STARTED:
            self._began_s = time.perf_counter()
        super().event(event_type)

    def save_model(self, model: FLModel) -> None:
        """Called with the mean, last in a round.

        Raises:
            RuntimeError: it is not what the clients' constants make it.
        """
        seconds = time.perf_counter() - self._began_s
        moved = _STEP * (self._silos + 1) / 2 * (self.current_round + 1)
        if not np.allclose(_firsts(model), self._began_with + moved, rtol=0.0, atol=1e-5):
            raise RuntimeError(f"The mean of round {self.current_round} is not what constants make")
        self._tell({"seconds": seconds, "job_peak_mb": _peak_mb()})

    def _tell(self, line: dict[str, object]) -> None:
        with Path(self._report).open("a", encoding="utf-8") as report:
            report.write(json.dumps(line) + "\n")


def train() -> None:
    """Every value of each model that comes plus this client's constant."""
    flare.init()
    step = np.float32(_STEP * (1 + int(flare.get_site_name().removeprefix("site-"))))
    while flare.is_running():
        model = flare.receive()
        if model is None:  # the job is over
            return
        params = {name: values + step for name, values in model.params.items()}
        flare.send(FLModel(params=params, meta={"NUM_STEPS_CURRENT_ROUND": _STEPS}))


def _firsts(model: FLModel) -> npt.NDArray[np.float64]:
    """The first value of each tensor; all would take memory that is counted as FLARE's."""
    return np.array([float(values.flat[0]) for values in model.params.values()])


def _peak_mb() -> float:
    """The most this process has held, in MiB."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


if __name__ == "__main__":
    train()
