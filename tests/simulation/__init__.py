"""The coordinator's own rounds under thousands of seeded schedules, in virtual time."""
