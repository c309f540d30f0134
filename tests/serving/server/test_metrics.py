"""The page that Prometheus reads, checked with the parser of its client; every server counts for itself."""

import threading

from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from syvla.serving.server.metrics import BUCKETS, PHASES, Metrics


def samples(page: str) -> dict[tuple[str, frozenset], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def types(page: str) -> dict[str, str]:
    return {line.split()[2]: line.split()[3] for line in page.splitlines() if line.startswith("# TYPE")}


def test_the_page_has_the_names_types_and_values_that_were_counted():
    metrics = Metrics()
    metrics.gauge("sessions", "Sessions remembered.", lambda: 3)
    metrics.gauge("episodes", "Recorded episodes.", lambda: {"sealed": 2, "lost": 1})
    metrics.count("requests")
    metrics.count("rejected", "cause", "memory", by=2)
    metrics.observe("decode", 0.003)
    metrics.observe("decode", 100.0)
    page = metrics.render()
    found = samples(page)
    assert found[("syvla_sessions", frozenset())] == 3
    assert found[("syvla_episodes", frozenset({("state", "sealed")}))] == 2
    assert found[("syvla_requests_total", frozenset())] == 1
    assert found[("syvla_rejected_total", frozenset({("cause", "memory")}))] == 2
    bucket = {
        b: found[("syvla_phase_seconds_bucket", frozenset({("phase", "decode"), ("le", str(b))}))] for b in BUCKETS
    }
    assert bucket == {b: float(b >= 0.003) for b in BUCKETS}, "buckets are cumulative"
    assert found[("syvla_phase_seconds_count", frozenset({("phase", "decode")}))] == 2
    assert found[("syvla_phase_seconds_sum", frozenset({("phase", "decode")}))] == 100.003
    assert types(page) == {
        "syvla_requests_total": "counter",
        "syvla_rejected_total": "counter",
        "syvla_batches_total": "counter",
        "syvla_batched_requests_total": "counter",
        "syvla_client_steps_total": "counter",
        "syvla_client_limited_total": "counter",
        "syvla_client_gave_way_total": "counter",
        "syvla_client_seams_total": "counter",
        "syvla_client_chunk_age_seconds": "histogram",
        "syvla_client_seam": "histogram",
        "syvla_phase_seconds": "histogram",
        "syvla_sessions": "gauge",
        "syvla_episodes": "gauge",
    }


def test_every_phase_is_on_the_page_before_the_first_request():
    """A rate over a series that appears with its first value misses that value."""
    found = samples(Metrics().render())
    assert all(found[("syvla_phase_seconds_count", frozenset({("phase", phase)}))] == 0 for phase in PHASES)


def test_two_servers_of_one_process_count_apart_and_leave_the_global_registry_alone():
    before = {family.name for family in REGISTRY.collect()}
    one, other = Metrics(), Metrics()
    one.count("batches")
    assert (one.value("batches"), other.value("batches")) == (1, 0)
    assert {family.name for family in REGISTRY.collect()} == before


def test_counts_from_many_threads_are_all_counted():
    metrics = Metrics()

    def work() -> None:
        for _ in range(2000):
            metrics.count("rejected", "cause", "queue_full")
            metrics.observe("total", 0.01)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert metrics.value("rejected", "cause", "queue_full") == 16000
    assert samples(metrics.render())[("syvla_phase_seconds_count", frozenset({("phase", "total")}))] == 16000
