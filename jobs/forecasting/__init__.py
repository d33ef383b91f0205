"""The plan: rows, tokens, cost and time before anything is paid for."""
