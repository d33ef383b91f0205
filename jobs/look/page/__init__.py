"""The report of a run as one HTML page that needs nothing else: gathered in one pass
over each sink, in bounded memory."""
