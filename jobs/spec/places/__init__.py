"""Where the input, the outputs and the state are: paths, URLs and mappings of the job file → settings."""
