"""What an OpenTelemetry SDK is told while a test runs: one of the test's own, not the process's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, Metric
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from agents_pg_session import telemetry

__all__ = ["Watch", "watching"]

Labels = Mapping[str, Any]


class Watch:
    """Spans and metrics in memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._reader = InMemoryMetricReader()
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.tracer = tracers.get_tracer("the application")
        self.instruments = telemetry.Instruments(
            tracers.get_tracer("agents_pg_session"), self.meters.get_meter("agents_pg_session")
        )

    def spans(self, verb: str | None = None) -> list[ReadableSpan]:
        """The spans that have ended, in this order; of one verb, or all of ours."""
        verbs = [
            (span, (span.attributes or {}).get("db.operation.name")) for span in self._exporter.get_finished_spans()
        ]
        return [span for span, name in verbs if name is not None and verb in (None, name)]

    def everything(self) -> str:
        """All spans and metrics as text."""
        read = self._reader.get_metrics_data()
        return "".join(span.to_json() for span in self._exporter.get_finished_spans()) + (
            read.to_json() if read else ""
        )

    def metric(self, name: str, **labels: object) -> float:
        """The value of a metric, or the count of a histogram: of all series whose labels hold these words, together.

        A label's dots are written as two underscores here.
        """
        wanted = {label.replace("__", "."): value for label, value in labels.items()}
        series = [each for each in self.series(name) if wanted.items() <= each[0].items()]
        return sum(value for _, value in series)

    def series(self, name: str) -> list[tuple[Labels, float]]:
        """Each series of a metric: its labels, and its value or the count of its histogram."""
        return [
            (dict(point.attributes or {}), _value(point))
            for metric in self.metrics()
            if metric.name == name
            for point in metric.data.data_points
        ]

    def metrics(self) -> list[Metric]:
        """Every metric that has anything to tell."""
        read = self._reader.get_metrics_data()
        scopes = [scope for resource in (read.resource_metrics if read else ()) for scope in resource.scope_metrics]
        return [metric for scope in scopes for metric in scope.metrics]


def _value(point: Any) -> float:
    """A histogram's count, or the value of anything else."""
    return float(point.count if hasattr(point, "count") else point.value)


@contextmanager
def watching() -> Iterator[Watch]:
    """Watch every store that is opened meanwhile."""
    watch = Watch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(telemetry, "instruments", lambda: watch.instruments)
        yield watch
    watch.meters.shutdown()
