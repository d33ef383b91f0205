"""One pass over each sink of a run: sums, sketches and samples, in memory that does not grow with the rows."""

from __future__ import annotations

from penstock.jobs.look import told
from penstock.jobs.look.page.marks import Marks
from penstock.jobs.look.page.money import Money
from penstock.jobs.look.page.routing import Routing
from penstock.jobs.look.page.speed import Speed
from penstock.jobs.look.page.trials import Trials, top_prices
from penstock.jobs.look.page.troubles import Troubles
from penstock.jobs.look.reading import Outputs


class Facts:
    """What the records say, each part by the module that tells of it."""

    def __init__(self, trials: Trials) -> None:
        self.money = Money()
        self.marks = Marks()
        self.routing = Routing()
        self.speed = Speed()
        self.troubles = Troubles()
        self.trials = trials

    def result(self, block: told.Told) -> None:
        self.marks.result(block)
        self.routing.see(block)
        self.speed.see(block)
        self.troubles.result(block)
        self.trials.result(block)

    def sample(self, sample: told.SampleTold) -> None:
        if sample.role == "cascade":
            return  # only the doubtful ones of their model: no measure of it
        self.marks.see(sample)
        self.trials.sample(sample)


def gather(outputs: Outputs) -> Facts:
    """Raises `Corrupt` where a record is not one of ours."""
    facts = Facts(Trials(top_prices(outputs.spec)))
    for block in told.blocks(outputs.records("results")):
        facts.result(block)
    for letter in told.letters(outputs.records("dead_letters")):
        facts.troubles.letter(letter)
    for line in told.costs(outputs.records("costs")):
        facts.money.see(line)
    for sample in told.samples(outputs.records("quality")):
        facts.sample(sample)
    return facts
