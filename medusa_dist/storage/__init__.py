"""The store of /v1/files and /v1/batches: a folder or a URL, files by tenant, batches, and their journals."""
