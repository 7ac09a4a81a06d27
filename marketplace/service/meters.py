"""The service's figures for Prometheus."""

import os

METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"  # where several workers put their figures together; prometheus_client's own name
BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Meters:
    """The figures of one application; of all its workers where METRICS_DIR is set."""

    def __init__(self):
        # It looks for METRICS_DIR when it is imported, and a supervisor of workers sets that after it has imported this.
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram

        self.media_type = CONTENT_TYPE_LATEST
        registry = self._registry = CollectorRegistry()
        self.requests = Counter("marketplace_requests", "Requests answered", ["path", "status"], registry=registry)
        self.request_seconds = Histogram(
            "marketplace_request_seconds", "Duration of a request", ["path"], buckets=BUCKETS_S, registry=registry
        )
        self._step_seconds = Histogram(
            "marketplace_step_seconds", "Duration of each step", ["step"], buckets=BUCKETS_S, registry=registry
        )
        self.pending = Gauge(
            "marketplace_photos_pending", "Photos in work or waiting", multiprocess_mode="livesum", registry=registry
        )
        self.reloads = Counter("marketplace_reloads", "Generations switched to or refused", ["result"], registry=registry)
        self.generation = Gauge(
            "marketplace_generation_timestamp_seconds",
            "When the generation being served was built; the oldest of all workers'",
            multiprocess_mode="livemin",
            registry=registry,
        )
        self.bucket = Gauge(
            "marketplace_bucket_timestamp_seconds",
            "When a poll of the bucket last succeeded, or polling began; the oldest of all workers'",
            ["followed"],
            multiprocess_mode="livemin",
            registry=registry,
        )

    def step(self, name: str):
        """A context whose duration is one of the step called `name`."""
        return self._step_seconds.labels(name).time()

    def text(self) -> bytes:
        """All figures in Prometheus' format."""
        from prometheus_client import CollectorRegistry, generate_latest, multiprocess

        if METRICS_DIR not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        return generate_latest(registry)
