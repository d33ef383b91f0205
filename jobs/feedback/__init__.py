"""Outcomes that come later: taken from files and topics, kept under the state, joined to results."""
