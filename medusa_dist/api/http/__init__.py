"""HTTP around the routes: paths, bodies, cross-origin access, errors, and routes about the service."""
