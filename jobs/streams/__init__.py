"""Topics by hand: publish rows to one, watch what arrives in one."""
