"""The registry of quality: what all runs measured, in one document, and what it says of each model."""
