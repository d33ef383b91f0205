"""What scoring 2 % of the answers takes from a whole job: throughput, file to file, with and without.

    python benchmarks/sampling_job.py [--rows 20000] [--share 0.02] [--pairs 8] [--scorer exact]

The same rows, server and job file, in turn; who goes first changes from pair to pair. The server answers at once, so
the job is as fast as the processors let it: a share of their time is a share of its throughput. Wanted: less than 2 %.
A `regex` runs in a process of its own, whose start is part of the job. Rates are requests/s from the first request to
the finished file.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
from pathlib import Path

from api_path import penstock, start_server, write_rows

SCORERS = {"exact": {"type": "exact", "expected": "yes"}, "regex": {"type": "regex", "pattern": "."}}


def sampled(job: Path, share: float, scorer: dict[str, str]) -> None:
    """Adds a scorer; samples go beside the results."""
    made = json.loads(job.read_text())
    made["tasks"] = {"default": {"models": ["m"], "sample": share, "scorers": [scorer]}}
    job.write_text(json.dumps(made))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--share", type=float, default=0.02)
    parser.add_argument("--concurrency", type=int, default=128)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--scorer", choices=SCORERS, default="exact")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "in.jsonl"
        write_rows(source, options.rows)
        server, url = start_server(0)
        try:
            ratios: list[float] = []
            for n in range(options.pairs):
                shares = (0.0, options.share) if n % 2 else (options.share, 0.0)
                rates = dict[float, float]()
                for k, share in enumerate(shares):
                    edit = functools.partial(sampled, share=share, scorer=SCORERS[options.scorer])
                    work_s, *_ = penstock(
                        folder, source, url, options.concurrency, 2 * n + k, edit=edit if share else None
                    )
                    rates[share] = options.rows / work_s
                ratios.append(rates[options.share] / rates[0.0])
                told = f"{rates[options.share]:,.0f}/s with samples, {rates[0.0]:,.0f}/s without"
                print(f"pair {n}: {told}, ratio {ratios[-1]:.3f}", flush=True)
            low, _, high = statistics.quantiles(ratios, n=4)
            print(f"median ratio {statistics.median(ratios):.3f} (half of the pairs: {low:.3f} to {high:.3f})")
        finally:
            server.kill()


if __name__ == "__main__":
    main()
