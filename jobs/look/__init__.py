"""Looking at runs: summary, bills, one item's story, log lines, the checker."""
