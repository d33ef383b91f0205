"""What is decided once for all jobs and may change while they run: versions, rollouts, stopped experiments."""
