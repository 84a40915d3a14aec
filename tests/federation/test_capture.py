"""Every byte of a whole round at the agent's edge, outside TLS and inside, accounted for."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message

from benchmark.federation import LocalFederation
from fedreid.audit import AuditLine, audit_files, read_audit
from fedreid.v1 import federation_pb2 as pb
from fedreid.wire.encoding import encode
from fedreid.wire.tensors import FloatArray, TensorFile, save_tensors
from silo_agent.config import Folders
from silo_agent.learning.state import FEDERATED, STANDALONE, read_classifier
from silo_agent.outbox import UPDATE_FILE, FinishedRound, Outbox
from tests.federation.capture import Relay, Tap, tapped
from tests.federation.conftest import write_plan
from tests.federation.test_learning import finished

pytestmark = [pytest.mark.timeout(400), pytest.mark.xdist_group("capture")]
_RUN_S = 300.0
_CANARIES = 200
_CANARY_BYTES = 16
_OVERHEAD = 0.03
_SENT: dict[str, type[Message]] = {
    "Hello": pb.HelloRequest,
    "NextTask": pb.NextTaskRequest,
    "Heartbeat": pb.HeartbeatRequest,
    "FetchModel": pb.FetchModelRequest,
    "OpenUpload": pb.OpenUploadRequest,
    "SendUpload": pb.SendUploadRequest,
    "ReportEvaluation": pb.ReportEvaluationRequest,
}


@dataclass(frozen=True)
class Captured:
    """What one silo's agent sent in a run of one round."""

    local: LocalFederation
    silo: str
    tap: Tap
    relay: Relay

    @property
    def folders(self) -> Folders:
        """The agent's data folder."""
        return Folders(self.local.agent_data(self.silo))

    @property
    def last(self) -> FinishedRound:
        """The round that it trained."""
        last = Outbox(self.folders).last()
        assert last is not None
        return last

    @property
    def round_folder(self) -> Path:
        """What the round left at the silo."""
        return Outbox(self.folders).folder(self.last)

    @property
    def images(self) -> list[Path]:
        """Every image of the silo."""
        return sorted(self.local.silos[self.silo].rglob("*.jpg"))

    def messages(self, name: str) -> list[Any]:
        """The messages of one call, parsed."""
        return [_SENT[name].FromString(raw) for raw in self.tap.sent[name]]

    def payload(self) -> bytes:
        """The tensors that were uploaded."""
        return b"".join(message.chunk.data for message in self.messages("SendUpload"))

    def inside(self) -> bytes:
        """Everything that TLS hid; the payload once more without its framing."""
        framed = b"".join(raw for raws in self.tap.sent.values() for raw in raws)
        return framed + self.payload()

    def audited(self, event: str) -> list[AuditLine]:
        """Lines of the agent's audit log."""
        return [line for line in read_audit(self.folders.audit) if line.event == event]


@pytest.fixture(scope="module")
def captured(
    silo_folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Captured]:
    """One real agent behind relay and tap, and a null agent beside it, for one round."""
    root = tmp_path_factory.mktemp("capture")
    chosen = dict(list(silo_folders.items())[:2])
    with LocalFederation(root / "fed", federation="harbour", silos=chosen) as local:
        local.initialise()
        watched, other = chosen
        local.start_run(write_plan(root / "plan.toml", rounds=1))
        local.join_without_training(other)
        local.command(*local.join_arguments(watched), "--enrol-only")
        tap, relay = asyncio.run(_watch(local, watched))
        yield Captured(local, watched, tap, relay)


async def _watch(local: LocalFederation, silo: str) -> tuple[Tap, Relay]:
    """Let the real agent take part until the run is over."""
    async with tapped(local, silo) as (tap, relay, port):
        config = local.agent_data(silo) / "agent.toml"
        config.write_text(config.read_text().replace(local.endpoint, f"localhost:{port}"))
        agent = local.start_agent(silo)
        await asyncio.to_thread(local.wait_until, finished, timeout_s=_RUN_S)
        await asyncio.to_thread(agent.stop)
    return tap, relay


def test_the_bytes_on_the_line_are_the_manifests_and_hardly_more(captured: Captured) -> None:
    (opening,) = captured.messages("OpenUpload")
    stated, sent = opening.manifest.byte_count, len(captured.relay.sent)
    print(f"manifest {stated} bytes, on the line {sent} bytes, {sent / stated - 1:+.3%}")
    assert stated < sent <= (1 + _OVERHEAD) * stated


def test_nobody_on_the_way_can_read_along(captured: Captured) -> None:
    outside = bytes(captured.relay.sent)
    payload = captured.payload()
    for place in range(0, len(payload) - 32, len(payload) // 20):
        assert payload[place : place + 32] not in outside
    # not the run's name: four letters turn up in 46 MB of noise in one of a hundred runs
    assert captured.last.base_digest.encode() not in outside
    assert b"conv1.weight" not in outside


def test_only_known_calls_with_known_fields_are_made(captured: Captured) -> None:
    assert set(captured.tap.sent) <= set(_SENT)
    for name, raws in captured.tap.sent.items():
        for message, raw in zip(captured.messages(name), raws, strict=True):
            assert message.SerializeToString() == raw  # nothing unknown rides along


def test_the_payload_is_the_shared_backbone_to_the_byte(captured: Captured) -> None:
    (opening,) = captured.messages("OpenUpload")
    with TensorFile(captured.round_folder / UPDATE_FILE) as update:
        expected = b"".join(update.read(name).tobytes() for name in update.layout.names)
        assert [t.name for t in opening.manifest.tensors] == list(update.layout.names)
    first, *chunks = captured.messages("SendUpload")
    assert first.upload_id and not first.chunk.data
    assert captured.payload() == expected
    overhead = sum(message.ByteSize() for message in chunks) - len(expected)
    assert overhead <= 32 * len(chunks)
    names = " ".join(tensor.name for tensor in opening.manifest.tensors)
    assert "classifier" not in names and "fc." not in names


def test_beside_the_tensors_only_the_contracts_numbers_leave(captured: Captured) -> None:
    (opening,) = captured.messages("OpenUpload")
    train = captured.local.silos[captured.silo] / "bounding_box_train"
    assert opening.report.num_images == len(list(train.iterdir()))
    small = [
        m for name in captured.tap.sent if name != "SendUpload" for m in captured.messages(name)
    ]
    assert all(message.ByteSize() < 32 * 1024 for message in small)
    kinds = {e.model for m in captured.messages("ReportEvaluation") for e in m.evaluations}
    assert kinds == {pb.MODEL_KIND_GLOBAL, pb.MODEL_KIND_LOCAL, pb.MODEL_KIND_STANDALONE}


def test_no_fragment_of_an_image_leaves(captured: Captured) -> None:
    inside = captured.inside()
    draws = np.random.default_rng(4)
    images = [path.read_bytes() for path in captured.images]
    canaries: set[bytes] = set()
    while len(canaries) < _CANARIES:
        data = images[draws.integers(len(images))]
        place = draws.integers(len(data) - _CANARY_BYTES)
        canary = data[place : place + _CANARY_BYTES]
        if len(set(canary)) >= _CANARY_BYTES // 2:  # a run of equal bytes proves nothing
            canaries.add(canary)
    assert [canary for canary in canaries if canary in inside] == []


def test_no_file_name_no_person_and_no_path_leaves(captured: Captured) -> None:
    inside = captured.inside()
    stems = {path.stem for path in captured.images}
    persons = {stem.partition("_")[0] + "_c" for stem in stems}
    assert len(persons) > 5
    told = [*stems, *persons, str(captured.local.root), str(captured.images[0].parent)]
    assert [text for text in told if text.encode() in inside] == []


@pytest.mark.parametrize("part", [FEDERATED, STANDALONE])
def test_no_classifier_leaves_in_either_encoding(
    captured: Captured, tmp_path: Path, part: str
) -> None:
    inside = captured.inside()
    classifier = read_classifier(captured.round_folder / "private" / part)
    assert classifier is not None and len(classifier.weight) > 5
    for row in classifier.weight:
        assert _exact(row) not in inside
        assert _halved(tmp_path, row) not in inside


def _exact(row: FloatArray) -> bytes:
    return row[: _CANARY_BYTES // 4].astype(np.float32).tobytes()


def _halved(folder: Path, row: FloatArray) -> bytes:
    path = folder / "row.safetensors"
    save_tensors(path, {"row": row[: _CANARY_BYTES // 2].astype(np.float32)})
    with TensorFile(path) as file, (folder / "row").open("wb") as stream:
        encode(file, file.layout, "bf16", stream)
    return (folder / "row").read_bytes()


def test_the_audit_log_tells_of_every_number_that_left(captured: Captured) -> None:
    (opening,) = captured.messages("OpenUpload")
    (sent,) = (line.fields for line in captured.audited("update.sent"))
    manifest = opening.manifest
    assert (sent["run"], sent["round"]) == (opening.run, opening.round)
    assert sent["payload_digest"] == manifest.payload_digest
    assert sent["byte_count"] == manifest.byte_count == len(captured.payload())
    assert sent["tensor_count"] == len(manifest.tensors)
    numbers = {field.name: value for field, value in opening.report.ListFields()}
    assert sent["report"] == {"privacy": None, **numbers}
    (outcome,) = (line.fields for line in captured.audited("update.outcome"))
    assert outcome["outcome"] == "accepted"
    noted = [
        (line.fields["round"], kind, line.fields[kind]["map"], line.fields[kind]["queries"])
        for line in captured.audited("figures.sent")
        for kind in ("global", "local", "standalone")
        if kind in line.fields
    ]
    kinds = {
        pb.MODEL_KIND_GLOBAL: "global",
        pb.MODEL_KIND_LOCAL: "local",
        pb.MODEL_KIND_STANDALONE: "standalone",
    }
    left = [
        (message.round, kinds[result.model], result.map, result.queries)
        for message in captured.messages("ReportEvaluation")
        for result in message.evaluations
    ]
    assert sorted(noted) == sorted(left)
    taken = [line.fields["model_digest"] for line in captured.audited("model.taken")]
    assert taken == [message.model_digest for message in captured.messages("FetchModel")]
    (started,) = captured.audited("agent.started")
    assert started.fields["policy"]["minimum_images"] == 2


def test_the_audit_log_itself_names_no_image_person_or_path(captured: Captured) -> None:
    text = b"".join(path.read_bytes() for path in audit_files(captured.folders.audit))
    told = [*(path.stem for path in captured.images), str(captured.local.root)]
    assert [one for one in told if one.encode() in text] == []


def test_what_egress_show_prints_is_what_was_sent(captured: Captured) -> None:
    data = str(captured.folders.root)
    shown = json.loads(
        captured.local.command("silo_agent", "egress", "show", "--data", data, "--json")
    )
    (opening,) = captured.messages("OpenUpload")
    assert shown["payload_digest"] == opening.manifest.payload_digest
    assert shown["byte_count"] == opening.manifest.byte_count
    assert {name: one["shape"] for name, one in shown["tensors"].items()} == {
        tensor.name: list(tensor.shape) for tensor in opening.manifest.tensors
    }
    assert shown["numbers"]["train_loss"] == opening.report.train_loss
    assert shown["left_so_far"]["rounds_total"] == 1
