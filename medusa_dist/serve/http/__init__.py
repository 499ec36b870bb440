"""What a service adds to Ray's own HTTP: a hook in Serve's proxies, and Ray's metrics on the service's port."""
