"""Counters, gauges and latency histograms of one server, as Prometheus text (exposition format 0.0.4).

Every server has a registry of its own: one process may hold several servers, and the client's global registry would add
them up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from syvla.serving.contract.requests import COMMAND_SOURCES, ClientReport

BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds in seconds: from a decoded message to a thought on a slow machine."""

SEAM_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Upper bounds in radians or meters, whatever the actions are."""

PHASES = ("decode", "queue", "think", "queries", "denoise", "encode", "total")

COUNTERS = {
    "requests": ("Requests for actions.", ()),
    "rejected": ("Requests and connections that were refused.", ("cause",)),
    "batches": ("Batches that the policy ran.", ()),
    "batched_requests": ("Requests in these batches.", ()),
    "client_steps": ("Control steps, as executors report them, by where the command was from.", ("source",)),
    "client_limited": ("Control steps whose command the client's limits changed, as executors report them.", ()),
    "client_gave_way": ("Control steps at which a limit of motion gave way to another limit, as executors report.", ()),
    "client_seams": ("Chunks that were entered while another one ran, as executors report them.", ()),
}
"""Help and label names of every counter `syvla_<name>_total`."""


class Metrics:
    """What `/metrics` shows. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._counters = {
            name: Counter(f"syvla_{name}", help, labels, registry=self._registry)
            for name, (help, labels) in COUNTERS.items()
        }
        phases = Histogram(
            "syvla_phase_seconds", "Latency of a request's phases.", ["phase"], buckets=BUCKETS, registry=self._registry
        )
        self._phases = {phase: phases.labels(phase) for phase in PHASES}
        self._chunk_age = Histogram(
            "syvla_client_chunk_age_seconds",
            "Age of the chunk in use when an executor asks for the next.",
            buckets=BUCKETS,
            registry=self._registry,
        )
        self._seam = Histogram(
            "syvla_client_seam",
            "Largest difference of two chunks' commands where one follows the other, physical units.",
            buckets=SEAM_BUCKETS,
            registry=self._registry,
        )

    def count(self, name: str, label: str = "", value: str = "", by: float = 1) -> None:
        """Adds to one of `COUNTERS`, `syvla_<name>_total{label="value"}`; values must come from a fixed set."""
        counter = self._counters[name]
        (counter.labels(**{label: value}) if label else counter).inc(by)

    def observe(self, phase: str, seconds: float) -> None:
        """Adds a latency to the histogram of one of `PHASES`."""
        self._phases[phase].observe(seconds)

    def answered(self, seconds: Mapping[str, float]) -> None:
        """Counts an answered request, and adds its phases to their histograms; only `PHASES` are kept."""
        self.count("requests")
        for phase in PHASES:
            if phase in seconds:
                self.observe(phase, seconds[phase])

    def refused(self, cause: str) -> None:
        """Counts a request that got no answer."""
        self.count("requests")
        self.count("rejected", "cause", cause)

    def client_reported(self, report: ClientReport, before: Mapping[str, int]) -> None:
        """Counts what an executor did since its last report.

        Args:
            before: Its counts then; a restarted executor's begin anew.
        """
        new = {name: count - before.get(name, 0) for name, count in report.counts.items()}
        if any(count < 0 for count in new.values()):
            new = dict(report.counts)
        for source in COMMAND_SOURCES:
            if new.get(source):
                self.count("client_steps", "source", source, new[source])
        self.count("client_limited", by=new.get("limited", 0))
        self.count("client_gave_way", by=new.get("gave_way", 0))
        if new.get("seams"):
            self.count("client_seams", by=new["seams"])
            if report.seam is not None:
                self._seam.observe(report.seam)
        if report.chunk_age_s is not None:
            self._chunk_age.observe(report.chunk_age_s)

    def gauge(
        self, name: str, help: str, read: Callable[[], float | Mapping[str, float]], label: str = "state"
    ) -> None:
        """Registers a value that is read when the page is asked for, or values by `label`."""
        self._registry.register(_ReadGauge(f"syvla_{name}", help, read, label))

    def value(self, name: str, label: str = "", value: str = "") -> float:
        """A counter's present value."""
        return self._registry.get_sample_value(f"syvla_{name}_total", {label: value} if label else {}) or 0.0

    def render(self) -> str:
        """The page."""
        return generate_latest(_WithoutCreationTimes(self._registry)).decode()


class _ReadGauge(Collector):
    """A gauge that holds no value: `read` gives it when a page is made."""

    def __init__(self, name: str, help: str, read: Callable[[], float | Mapping[str, float]], label: str) -> None:
        self.name, self.help, self.read, self.label = name, help, read, label

    def collect(self) -> Iterator[Metric]:
        found = self.read()
        if not isinstance(found, Mapping):
            yield GaugeMetricFamily(self.name, self.help, value=found)
            return
        family = GaugeMetricFamily(self.name, self.help, labels=[self.label])
        for state, value in found.items():
            family.add_metric([state], value)
        yield family


class _WithoutCreationTimes(CollectorRegistry):
    """A registry's page without the `_created` series that the client adds to every counter and histogram.

    The client's own switch, `disable_created_metrics`, holds for the whole process and so for a user's metrics too.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__()
        self._all = registry

    def collect(self) -> Iterator[Metric]:
        for family in self._all.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
