"""Is the federation learning?"""

from deploy.grafana.boards.common import JOB, NO_FIGURES, OF, OF_S, SILOS, WITHHELD, number
from deploy.grafana.parts import Board, Panel, Query, Row, one

FEDERATION = Board(
    uid="fedreid-federation",
    title="fedreid / Federation",
    description="Is it learning? Models, what they score at each silo, and who takes part.",
    variables=(JOB, SILOS),
    rows=(
        Row(
            title="Now",
            panels=(
                number(
                    "Since the last model",
                    "Time since a round last published a model, or since the run was started.",
                    "s",
                    f"fedreid:since_success:seconds{{{OF}}}",
                    empty="No run was started yet.",
                ),
                number(
                    "Newest model",
                    "Version of the newest published model.",
                    "none",
                    f"fedreid_model_version{{{OF}}}",
                ),
                number(
                    "Round",
                    "Number of the newest round.",
                    "none",
                    f"fedreid_round_current{{{OF}}}",
                ),
                number(
                    "Silos there",
                    "Silos that were heard of within the last minute.",
                    "none",
                    f"fedreid_silos_present{{{OF}}}",
                ),
                number(
                    "Silos that take part",
                    "Registered silos in the state active.",
                    "none",
                    f'fedreid_silos{{{OF}, state="active"}}',
                ),
                number(
                    "Run",
                    "1 while a run is running; 0 paused, ended or none.",
                    "none",
                    f"fedreid_run_under_way{{{OF}}}",
                ),
            ),
        ),
        Row(
            title="What the models score",
            panels=(
                Panel(
                    title="mAP of each silo",
                    description="On the silo's own test set: the global model, the silo's own "
                    "after training on it (local), and one trained there alone (standalone).",
                    unit="percentunit",
                    queries=one(f"fedreid_silo_map_ratio{{{OF_S}}}", "{{silo}} {{model}}"),
                    empty=NO_FIGURES,
                ),
                Panel(
                    title="Rank-1 of each silo",
                    description="How often the first of the ranked images is the right person.",
                    unit="percentunit",
                    queries=one(f"fedreid_silo_rank1_ratio{{{OF_S}}}", "{{silo}} {{model}}"),
                    empty=NO_FIGURES,
                ),
                Panel(
                    title="Mean over silos",
                    description="Each silo counts alike. Global above standalone: it pays to take "
                    "part.",
                    unit="percentunit",
                    queries=(
                        Query(expr=f"fedreid:silo_map_ratio:mean{{{OF}}}", legend="mAP {{model}}"),
                        Query(
                            expr=f"fedreid:silo_rank1_ratio:mean{{{OF}}}",
                            legend="rank-1 {{model}}",
                        ),
                    ),
                    empty=NO_FIGURES,
                ),
                Panel(
                    title="The global model",
                    description="On the coordinator's own images, if it has any, and as the mean "
                    "of the silos' figures.",
                    unit="percentunit",
                    queries=(
                        Query(expr=f"fedreid_model_map_ratio{{{OF}}}", legend="mAP {{dataset}}"),
                        Query(
                            expr=f"fedreid_model_rank1_ratio{{{OF}}}",
                            legend="rank-1 {{dataset}}",
                        ),
                    ),
                    empty=NO_FIGURES,
                ),
            ),
        ),
        Row(
            title="Learning",
            panels=(
                Panel(
                    title="Training loss",
                    description="Of each silo's newest update.",
                    unit="none",
                    queries=one(f"fedreid_silo_train_loss{{{OF_S}}}", "{{silo}}"),
                    empty=WITHHELD,
                ),
                Panel(
                    title="Cosine distance",
                    description="How far a silo's classifier moved in training: what weighting by "
                    "cosine distance weighs with.",
                    unit="none",
                    queries=one(f"fedreid_silo_cosine_distance{{{OF_S}}}", "{{silo}}"),
                    empty=WITHHELD,
                ),
                Panel(
                    title="Participants of the round",
                    description="Invited silos by what became of their update.",
                    unit="none",
                    queries=one(
                        f'fedreid_round_participants{{{OF}, state!="invited"}}', "{{state}}"
                    ),
                    kind="stacked",
                ),
                Panel(
                    title="Change of the model",
                    description="Norm of what the newest aggregate changed.",
                    unit="none",
                    queries=one(f"fedreid_model_update_norm{{{OF}}}", "update"),
                ),
                Panel(
                    title="Distillation",
                    description="Mean loss over the public images, before and after.",
                    unit="none",
                    queries=one(f"fedreid_distillation_loss{{{OF}}}", "{{stage}}"),
                    empty="The plan does not distil.",
                ),
                Panel(
                    title="Privacy loss",
                    description="Epsilon of all updates of a silo together, as it told.",
                    unit="none",
                    queries=one(f"fedreid_silo_privacy_epsilon{{{OF_S}}}", "{{silo}}"),
                    empty="No silo adds noise.",
                ),
            ),
        ),
    ),
)
