#!/usr/bin/env bash
# Start Ray on this machine: the head of a cluster, or a single-node cluster.
#
#   cluster/start_head.sh                                      # then: medusa-dist serve --address auto <config>
#   RAY_AUTH_MODE=token cluster/start_head.sh --port 6379      # and on each further node: ray start --address <head>:6379
#   ray stop                                                   # stops Ray on this machine
#
# Access to Ray's dashboard allows running any code on the cluster (CVE-2023-48022). It therefore stays on 127.0.0.1:
# reach it through an SSH tunnel. Further arguments go to `ray start`; opening the dashboard without a token is refused.
# METRICS_PORT: the port that Prometheus scrapes (monitoring/prometheus.yml); default 8080.
set -euo pipefail

dashboard_host=127.0.0.1
previous=
for argument in "$@"; do
    case "$argument" in
    --dashboard-host=*) dashboard_host=${argument#*=} ;;
    *) if [ "$previous" = --dashboard-host ]; then dashboard_host=$argument; fi ;;
    esac
    previous=$argument
done

case "$dashboard_host" in
127.* | localhost | ::1) ;;
*)
    if [ "${RAY_AUTH_MODE:-}" != token ] && [ "${MEDUSA_DIST_OPEN_DASHBOARD:-}" != yes ]; then
        echo "start_head.sh: --dashboard-host $dashboard_host would let anyone with access to it run code on this cluster." >&2
        echo "Set RAY_AUTH_MODE=token on all nodes, or MEDUSA_DIST_OPEN_DASHBOARD=yes in a closed network." >&2
        exit 1
    fi
    ;;
esac

# Serve's HTTP proxies inherit this environment and load this hook (medusa_dist/serve/http/proxy.py). One that cannot be
# imported would stop them, hence only where the package is installed beside ray.
if "$(dirname "$(command -v ray)")/python" -P -c 'import medusa_dist.serve.http.proxy' 2>/dev/null; then
    hook=medusa_dist.serve.http.proxy:configure
    export RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH="${RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH:-$hook}"
fi

exec ray start --head --dashboard-host 127.0.0.1 --metrics-export-port "${METRICS_PORT:-8080}" \
    --disable-usage-stats "$@"
