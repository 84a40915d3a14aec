"""How does a coordinator come to a run without a worker process? Its start weights are planted."""

from collections.abc import Mapping

from coordinator.folders import Folders
from coordinator.rounds.journal import Journal, RunRow
from coordinator.rounds.publishing import Models, Origin
from fedreid.files import replacing
from fedreid.names import Digest, FederationName, RoundNumber, RunName
from fedreid.pki.signing import signing_key
from fedreid.wire.tensors import FloatArray, write_model

RUN = RunName("spring")


def plant(folders: Folders, tensors: Mapping[str, FloatArray], quorum: str) -> Digest:
    """Begin a run of one round from these tensors; the digest of its base model.

    ``quorum`` is that table of its plan.
    """
    staged = folders.root / "start.safetensors"
    with replacing(staged) as stream:
        write_model(stream, dict(tensors))
    journal = Journal(folders.journal)
    key = signing_key(folders.model_key.read_bytes())
    models = Models(folders, journal, FederationName("harbour"), key)
    origin = Origin(run=RUN, round=RoundNumber(0), base_digest=Digest(""))
    model = models.place(staged, origin, ("fp32",))
    plan = f'name = "{RUN}"\nrounds = 1\n[quorum]\n{quorum}\n'
    journal.add_run(RunRow(name=RUN, plan_toml=plan, state="running", started_at_s=0.0), model)
    journal.close()
    return Digest(model.digest)
