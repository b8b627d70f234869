# Two more clusters of Quorate: in one, limits follow load, class, fair parts and trust (moving.toml), with three backends
# that report each second; in the other the same limits stand still (fixed.toml). What they differ by is what moving costs.

readonly MOVING_NODES=http://127.0.0.1:19101,http://127.0.0.1:19102,http://127.0.0.1:19103
readonly FIXED_NODES=http://127.0.0.1:20101,http://127.0.0.1:20102,http://127.0.0.1:20103

# What three backends near their target report each second, until it is ended. They run elsewhere, so what it costs to
# send is kept small: one request for all.
moving_signals() {
    local body backend
    for backend in 1 2 3; do
        body+="${body:+,}{\"feature\":\"bench.limit\",\"region\":\"bench\",\"source\":\"backend$backend\",\"utilisation\":\"0.8\",\"ttl_ms\":10000}"
    done
    while true; do
        curl --silent --show-error --fail --max-time 2 --output /dev/null --header 'Content-Type: application/json' \
            --data "{\"signals\":[$body]}" "${MOVING_NODES%%,*}/v1/signals" || echo 'the backends could not report'
        sleep 1
    done
}

# Starts a cluster with a policy of its own: moving_cluster NAME PORTS NODES
moving_cluster() {
    local nodes="$3"
    quorate_nodes "$1" "$2" ''
    wait_for "the cluster $1" "$QUORATE" --node "$nodes" policy put "scripts/bench.d/$1.toml"
    quorate_prepare "the cluster $1"
}

moving_missing() { quorate_missing; }
moving_version() { quorate_version; }
moving_start() {
    moving_cluster moving 19000 "$MOVING_NODES"
    start moving-signals moving_signals
}
moving_single() { nodes="$MOVING_NODES" quorate_single; }
moving_batch() { nodes="$MOVING_NODES" quorate_batch; }

fixed_missing() { quorate_missing; }
fixed_version() { quorate_version; }
fixed_start() { moving_cluster fixed 20000 "$FIXED_NODES"; }
fixed_single() { nodes="$FIXED_NODES" quorate_single; }
fixed_batch() { nodes="$FIXED_NODES" quorate_batch; }
