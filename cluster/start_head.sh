#!/usr/bin/env bash
# Start Ray on this machine: the head of a cluster, or all of it.
#
#   cluster/start_head.sh                                      # then: medusa-dist serve --address auto <config>
#   RAY_AUTH_MODE=token cluster/start_head.sh --port 6379      # and on each further node: ray start --address <head>:6379
#   ray stop                                                   # ends what runs on this machine
#
# Whoever reaches Ray's dashboard can run any code on the cluster (CVE-2023-48022). So it stays on 127.0.0.1: reach it
# through an SSH tunnel. Further arguments go to `ray start`; one that opens the dashboard is refused without a token.
# METRICS_PORT: where Prometheus reads (monitoring/prometheus.yml); default 8080.
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
        echo "start_head.sh: --dashboard-host $dashboard_host would let everybody who reaches it run code here." >&2
        echo "Set RAY_AUTH_MODE=token on all nodes, or, in a closed network, MEDUSA_DIST_OPEN_DASHBOARD=yes." >&2
        exit 1
    fi
    ;;
esac

exec ray start --head --dashboard-host 127.0.0.1 --metrics-export-port "${METRICS_PORT:-8080}" \
    --disable-usage-stats "$@"
