"""Which boards are there, and what does each show?"""

from deploy.grafana.boards.coordinator import COORDINATOR
from deploy.grafana.boards.federation import FEDERATION
from deploy.grafana.boards.rounds import ROUNDS
from deploy.grafana.boards.security import SECURITY
from deploy.grafana.boards.silo import SILO

ALL = (FEDERATION, ROUNDS, SILO, COORDINATOR, SECURITY)
