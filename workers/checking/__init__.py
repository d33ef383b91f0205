"""Is an answer what was asked for, and how good? Checked and scored, where it may take long in another process."""
