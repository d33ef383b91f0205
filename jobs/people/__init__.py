"""People look at answers: which ones, what they say of them, and how far they agree."""
