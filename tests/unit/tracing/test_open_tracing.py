import subprocess
import sys

import pytest

from medusa_dist.errors import ConfigError
from medusa_dist.tracing.open_tracing import check_tracing, open_tracing

# A process in which a package of OpenTelemetry cannot be imported, as where it is not installed.
WITHOUT = """
import sys
sys.modules[{package!r}] = None
from medusa_dist.tracing.open_tracing import check_tracing, open_tracing
open_tracing(False), check_tracing(False)
try:
    {call}(True)
except Exception as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("call", ["check_tracing", "open_tracing"])
@pytest.mark.parametrize("package", ["opentelemetry.sdk", "opentelemetry.exporter"])
def test_missing_package_is_an_error_that_names_the_extra(package: str, call: str) -> None:
    code = WITHOUT.format(package=package, call=call)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ConfigError tracing: the package of opentelemetry."), done.stdout
    assert done.stdout.endswith("is not installed; pip install 'medusa-dist[tracing]'\n")


def test_when_off_neither_sdk_nor_exporter_is_imported() -> None:
    code = (
        "import sys, medusa_dist.api.routes\nfrom medusa_dist.tracing.open_tracing import open_tracing\n"
        "assert open_tracing(False) is None\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "'zipkin' that OTEL_TRACES_EXPORTER"),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "carrier-pigeon"}, "'otlp_proto_carrier-pigeon' that"),
        ({"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "'otlp_proto_http/json' that"),
    ],
)
def test_exporter_that_is_not_installed_is_refused_by_name(variables, named, monkeypatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"tracing: no installed package has the exporter") as caught:
        check_tracing(True)
    assert named in str(caught.value)


@pytest.mark.parametrize("name", ["none", "console", "otlp", ""])
def test_exporters_that_are_there_are_taken(name, monkeypatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", name)
    check_tracing(True)


def test_one_process_has_one_tracer(monkeypatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    tracer = open_tracing(True)
    assert tracer is not None and open_tracing(True) is tracer
