"""Everything a cluster needs to know of one run: what `jobs.spec` made of the job file. No secrets in it."""

from __future__ import annotations

from typing import Literal

import msgspec

from penstock.connectors.base import Mark, SinkName
from penstock.connectors.settings import KafkaSource, Row, SinkSettings, SourceSettings, is_endless
from penstock.engine.budget import Budget
from penstock.engine.catalog import Catalog
from penstock.engine.policy import Policy
from penstock.engine.review import Review

DEFAULT_STATE = ".penstock"
WINDOW_IN_ALL, MIN_WINDOW, MAX_WINDOW = 8192, 512, 4096


class Execution(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How a run is carried out; nothing here changes an answer."""

    lanes: int | None = None
    """None: from the size of the input and the cluster; at most 64; frozen by the plan."""
    lane_actors: int | None = None
    """Processes that hold the lanes. None: half of the cluster's cores."""
    window: int | None = None
    """Items of one lane that may be read and not yet committed. None: 8,192 shared among the run's lanes, 512 to 4,096
    each: a second of work at the fastest rate measured, and about 75 MB of memory, however many lanes there are."""
    window_bytes: int = 64_000_000
    commit_ms: int | None = None
    """Between a lane's commits. None: what the store of the results is made for: 200, on S3 2,000."""
    dispatchers: int = 1
    """Processes that send to one account."""
    keep_s: float = 120.0
    """How long a worker on a cluster stays after its last job: the next one finds a loaded engine."""
    discover_s: float = 60.0
    """An endless run lists its source so often, for partitions and objects that are new. A guess: a new partition is
    rare, and a topic's metadata costs one request."""
    outage_s: float = 600.0
    """How long a run with an end waits for a source or a store that can't be reached, before it stops (exit code 4). A
    restart of a cluster takes minutes; whoever runs a job wants to hear of more within ten. A run without an end waits
    as long as it takes."""
    drain_s: float = 25.0
    """After a request to stop: how long calls in flight may take to end before they are cut off. Kubernetes kills 30 s
    after its SIGTERM unless told otherwise, and a last commit and Ray's end take some seconds."""


def commit_s_of(spec: RunSpec) -> float:
    """Seconds between a lane's commits."""
    return (spec.execution.commit_ms or spec.sinks["results"].commit_ms) / 1000


def window_of(execution: Execution, lanes: int) -> int:
    """Items of one lane that may be read and not yet committed."""
    return execution.window or max(MIN_WINDOW, min(MAX_WINDOW, WINDOW_IN_ALL // max(1, lanes)))


class RunSpec(msgspec.Struct, frozen=True):
    run_id: str
    name: str
    vars: dict[str, str]
    source: SourceSettings
    shape: Literal["rows", "openai-batch"] | None
    """None: the shape of the input."""
    row: Row
    catalog: Catalog
    policy: Policy
    sinks: dict[SinkName, SinkSettings]
    """results, costs, quality, dead_letters: all four are named here; review where the job names it."""
    budgets: tuple[Budget, ...] = ()
    state: str = DEFAULT_STATE
    on_duplicate: Literal["allow", "dead_letter"] = "dead_letter"
    max_dead_letters: int | float | None = None
    limit: int | None = None
    generation: int = 0
    execution: Execution = Execution()
    fingerprint: dict[str, str] = {}
    scorer_path: str | None = None
    """Folder appended to sys.path for `module:function` scorers."""
    feedback: SourceSettings | None = None
    """Where outcomes come from that are learned later; it changes no answer."""
    review: Review | None = None
    """Which results people shall look at."""
    pinned: bool = False
    """Versions stand as the catalogue says, whatever is steered for other jobs: an evaluation compares just these."""
    data: str = ""
    """Of an evaluation: a hash of its rows. Asked again they are no new evidence. Empty: rows that come once."""

    @property
    def endless(self) -> bool:
        """Its input grows for as long as it runs: it ends when it is told to. A trial of N items ends after them."""
        return is_endless(self.source) and self.limit is None

    @property
    def by_key(self) -> bool:
        """Records of one key are sent one after another."""
        return isinstance(self.source, KafkaSource) and self.source.order == "key"


class RunOptions(msgspec.Struct, frozen=True):
    """How one command asks for a run."""

    take_over: bool = False
    fresh: bool = False
    """Start over: the earlier outputs and progress are set aside first."""
    accept_changes: bool = False
    command: str = ""
    """The command line, for the person who finds the run held."""
    results_at: str | None = None
    """Where the results were when history last heard of this run; None: it knows of none, or is to forget."""
    ended: int = 0
    """Items that had ended then; 0 where history knows of none, or is to forget."""
    generation_anew: int | None = None
    """Of the run's items where it has no plan, which begins a new life; None: the spec's."""
    asked_at: float | None = None
    """When the command began: Ray's start belongs to what a person waits for."""
    marks: tuple[Mark, ...] = ()
    """By which processes on other nodes tell that they see the run's folders; the command holds them while it lives."""
