"""What does Flower run in a null round? A server that averages, and a client that adds a constant.

``flower`` packs this file as a Flower app; Flower imports it in processes of its own, the server's
in ``flwr-serverapp`` and each client's in ``flwr-clientapp``. Nothing of fedreid is there.

Flower names what it moves by its digest and sends nothing twice. So the model is random, and each
client adds a constant of its own: else many tensors would be one, and all updates as well.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

Array = npt.NDArray[np.float32]

_STEP = np.float32(1e-3)
_IMAGES = 100


def serve(grid: Grid, context: Context) -> None:
    """All rounds, with a line of figures in the report after each."""
    task = json.loads(Path(str(context.run_config["task"])).read_text("utf-8"))
    with Path(str(context.run_config["report"])).open("a", encoding="utf-8", buffering=1) as report:
        try:
            for line in _rounds(grid, task):
                report.write(json.dumps(line) + "\n")
        except Exception as error:
            report.write(json.dumps({"failed": f"{type(error).__name__}: {error}"}) + "\n")
            raise


def _rounds(grid: Grid, task: dict[str, Any]) -> Iterator[dict[str, float]]:
    """Round after round, as ``Strategy.start`` does them, timed from configuring to the mean.

    Raises:
        RuntimeError: a client failed, or the mean is not what the clients' constants make it.
    """
    silos = task["silos"]
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=silos, min_available_nodes=silos)
    random = np.random.default_rng(0)
    arrays = ArrayRecord([random.standard_normal(s, dtype=np.float32) for s in task["shapes"]])
    began_with, mean_step = _firsts(arrays), _STEP * np.float32((silos + 1) / 2)
    for number in range(1, task["rounds"] + 1):
        began_s = time.perf_counter()
        messages = strategy.configure_train(number, arrays, ConfigRecord(), grid)
        replies = list(grid.send_and_receive(messages, timeout=task["round_s"]))
        mean, _ = strategy.aggregate_train(number, replies)
        seconds = time.perf_counter() - began_s
        failures = [str(reply.error) for reply in replies if reply.has_error()]
        if mean is None or failures or len(replies) != silos:
            raise RuntimeError(f"{len(replies)} of {silos} clients replied; {failures[:1]}")
        if not np.allclose(_firsts(mean), began_with + number * mean_step, rtol=0.0, atol=1e-5):
            raise RuntimeError(f"The mean of round {number} is not what {silos} constants make")
        arrays = mean
        yield {"seconds": seconds, "serverapp_peak_mb": _peak_mb()}


def train(message: Message, context: Context) -> Message:
    """Every value of the model plus this client's constant."""
    step = _STEP * np.float32(1 + int(context.node_config["silo"]))
    values = message.content["arrays"].to_numpy_ndarrays()
    content = {
        "arrays": ArrayRecord([array + step for array in values]),
        "metrics": MetricRecord({"num-examples": _IMAGES}),
    }
    return Message(content=RecordDict(content), reply_to=message)


def _firsts(arrays: ArrayRecord) -> Array:
    """The first value of each tensor; all would take memory that is counted as Flower's."""
    return np.array([array.numpy().flat[0] for array in arrays.values()], dtype=np.float32)


def _peak_mb() -> float:
    """The most this process has held, in MiB."""
    status = Path("/proc/self/status").read_text("ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


server = ServerApp()
client = ClientApp()
# Calls, not decorators: where mypy has no Flower to look at, a decorator would hide these types.
server.main()(serve)
client.train()(train)
