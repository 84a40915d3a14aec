"""Which training process writes a checkpoint after each step? For tests that kill it."""

import math

from silo_agent.learning.checkpoints import Pace
from silo_agent.learning.worker import main

if __name__ == "__main__":
    main(Pace(pause_s=0.0, share=math.inf))
