"""The commands of `penstock`, a module per group. `jobs.cli` names them and imports each only when it is called."""
