"""`python -m penstock.jobs.demo real FOLDER`: act three, by the Python that has vLLM."""

from __future__ import annotations

import sys
from pathlib import Path

from penstock.engine.errors import PenstockError
from penstock.jobs.demo import real
from penstock.jobs.demo.play import main
from penstock.jobs.demo.stage import Stage

if __name__ == "__main__":
    stage = Stage()
    match sys.argv[1:]:
        case ["real", folder]:
            try:
                sys.exit(real.play(stage, Path(folder)))
            except PenstockError as error:
                stage.bad(str(error))
                sys.exit(1)
        case ["--quick"]:
            sys.exit(main(quick=True))
        case []:
            sys.exit(main())
        case _:
            stage.bad("usage: python -m penstock.jobs.demo [--quick | real FOLDER]")
            sys.exit(2)
