"""From a raw record to an item: identity, attributes, canonical request, labels."""
