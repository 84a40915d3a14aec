"""A round as the outbox notes it; tests change what they are about with ``msgspec``'s replace."""

from fedreid.contract import EvaluationResult, UpdateReport
from fedreid.plan import BackbonePlan
from silo_agent.outbox import FinishedRound

RESULT = EvaluationResult(
    model="local", rank1=0.5, rank5=0.75, rank10=1.0, map=0.25, minp=0.1, queries=9
)
ROUND = FinishedRound(
    run="spring",
    round=7,
    base_digest="b" * 64,
    base_round=6,
    backbone=BackbonePlan(),
    bn="pooled",
    encoding="fp32",
    report=UpdateReport(num_images=10, cosine_distance=0.5, train_loss=1.0, num_steps=4),
    num_identities=3,
    evaluations=(RESULT,),
    earlier=(),
)
