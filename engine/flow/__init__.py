"""The lane machine: from an offered item to a commit. Events in, instructions out."""
