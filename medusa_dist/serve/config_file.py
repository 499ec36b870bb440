"""Strict reader of Serve config files: unknown keys, which Ray Serve would drop, are errors.

Owns the validation of a file before anything starts. Not here: the keys under `args` (config.py), deploying
(launch.py).
"""

import difflib
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

from medusa_dist.config import Config, explain_validation, parse_config
from medusa_dist.errors import ConfigError

IMPORT_PATH = "medusa_dist.app:build_app"


@dataclass(frozen=True)
class ServeFile:
    """A validated file. schema: passed to Ray Serve. configs: of our applications, by application name."""

    schema: ServeDeploySchema
    configs: dict[str, Config]

    def url(self, application: str) -> str:
        """The URL of an application, as seen from the machine that runs the proxy."""
        options = self.schema.http_options
        host = "127.0.0.1" if options.host in ("0.0.0.0", "::") else options.host  # compared, not bound
        prefix = next(a.route_prefix for a in self.schema.applications if a.name == application)
        return f"http://{host}:{options.port}{(prefix or '').rstrip('/')}"


def read_serve_file(path: Path, deployment: str) -> ServeFile:
    """Read and validate a Serve config. deployment: the name of our deployment.

    Raises ConfigError with one line per problem, each naming the path of its key.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("applications"), list):
        raise ConfigError(f"{path} is not a Serve config: it must have a list `applications`")
    problems = unknown_keys(raw, ServeDeploySchema)
    for index, application in enumerate(raw["applications"]):
        if isinstance(application, dict) and application.get("import_path") == IMPORT_PATH:
            problems += _foreign_deployments(application, index, deployment)
            problems += unknown_keys(application.get("args"), Config, f"applications[{index}].args.")
    if problems:
        raise ConfigError("\n".join(problems))
    try:
        schema = ServeDeploySchema.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(explain_validation(error)) from None
    ours = [application for application in schema.applications if application.import_path == IMPORT_PATH]
    if not ours:
        raise ConfigError(f"{path}: no application has import_path {IMPORT_PATH}")
    file = ServeFile(schema, {application.name: _args(application) for application in ours})
    problems = [line for application in ours for line in _contradictions(application, file.configs[application.name])]
    if problems:
        raise ConfigError("\n".join(problems))
    return file


def _args(application: ServeApplicationSchema) -> Config:
    try:
        return parse_config(application.args)
    except ConfigError as error:
        lines = [f"application {application.name}, args.{line}" for line in error.message.splitlines()]
        raise ConfigError("\n".join(lines)) from None


def _contradictions(application: ServeApplicationSchema, config: Config) -> list[str]:
    """Overrides of the deployment that contradict the application's args."""
    problems = []
    for override in application.deployments:
        given = override.model_dump(exclude_unset=True)
        where = f"application {application.name}, deployments"
        for key in ("num_replicas", "autoscaling_config"):
            if config.autoscaling is not None and given.get(key) is not None:
                problems.append(f"{where}.{key}: args.autoscaling also sets the replicas; remove one of the two")
        limit = given.get("max_ongoing_requests")
        if isinstance(limit, int) and limit < config.max_running:
            problems.append(
                f"{where}.max_ongoing_requests: {limit} is too low to fill args.max_running ({config.max_running}); "
                f"set it to at least max_running + max_queued = {config.max_running + config.max_queued}, or remove it"
            )
    return problems


def unknown_keys(value: Any, schema: type[BaseModel], path: str = "") -> list[str]:
    """One line for each key in nested mappings that the schema does not have, with the closest known key."""
    if not isinstance(value, dict):
        return []  # a wrong type is reported by the schema
    known = set(schema.model_fields) | {field.alias for field in schema.model_fields.values() if field.alias}
    problems = []
    for key, item in value.items():
        where = f"{path}{key}"
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            problems.append(f"{where}: unknown key{f'; did you mean {near[0]}?' if near else ''}")
            continue
        field = schema.model_fields.get(key)
        nested = None if field is None else _model_in(field.annotation)
        if nested is not None and isinstance(item, list):
            for index, entry in enumerate(item):
                problems += unknown_keys(entry, nested, f"{where}[{index}].")
        elif nested is not None:
            problems += unknown_keys(item, nested, f"{where}.")
    return problems


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The pydantic class in an annotation such as list[X] or X | dict | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := _model_in(part)) is not None), None)


def _foreign_deployments(application: dict[str, Any], index: int, deployment: str) -> list[str]:
    """Overrides of deployments that our application does not have."""
    names = [d.get("name") for d in application.get("deployments") or [] if isinstance(d, dict)]
    return [
        f"applications[{index}].deployments[{i}].name: unknown deployment {name!r}; use {deployment!r}"
        for i, name in enumerate(names)
        if name != deployment
    ]
