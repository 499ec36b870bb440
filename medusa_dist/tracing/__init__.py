"""OpenTelemetry traces of requests, with the config key `tracing`."""
