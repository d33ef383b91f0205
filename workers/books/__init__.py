"""What a run keeps at its state: the audit log, who answered, what was measured, rollouts, money, GPU hours."""
