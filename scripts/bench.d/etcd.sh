# etcd: three nodes; a compare-and-swap transaction through the JSON gateway on each, connections
# spread over them, driven by `quorate bench --peer etcd`. It has no counterpart to `batch`.

readonly ETCD_NODES=http://127.0.0.1:17371,http://127.0.0.1:17372,http://127.0.0.1:17373

etcd_missing() {
    command -v etcd >/dev/null && return 1
    echo "etcd is not installed (--install does)"
}

etcd_version() {
    etcd --version | head -n 1
}

etcd_start() {
    local id cluster=''
    rm -rf "$DATA/etcd"
    mkdir -p "$DATA/etcd"
    for id in 1 2 3; do
        cluster="$cluster${cluster:+,}node$id=http://127.0.0.1:1738$id"
    done
    for id in 1 2 3; do
        start "etcd-node$id" etcd --name "node$id" --data-dir "$DATA/etcd/node$id" --log-level error --logger zap \
            --listen-client-urls "http://127.0.0.1:1737$id" --advertise-client-urls "http://127.0.0.1:1737$id" \
            --listen-peer-urls "http://127.0.0.1:1738$id" --initial-advertise-peer-urls "http://127.0.0.1:1738$id" \
            --initial-cluster "$cluster" --initial-cluster-token quorate-bench
    done
    # Three connections, so that every node has to answer.
    wait_for "the etcd cluster" \
        etcd_ask --setup --accounts 1 --connections 3 --count 3 --warmup 0s --duration 5s
}

etcd_ask() {
    "$QUORATE" --json --node "$ETCD_NODES" bench --peer etcd "$@"
}

# One measured run. The setup gives every key its first value again, so that the generator knows them all.
etcd_run() {
    local wanted="$1"
    shift
    etcd_ask --setup --duration "${seconds}s" --warmup "${warmup}s" --connections "$CONNECTIONS" \
        --accounts "$ACCOUNTS" --seed "$RANDOM" "$@" | tee -a "$DATA/etcd-runs.json" | field "$wanted"
}

etcd_single() { etcd_run decisions_per_second; }
etcd_hot() { etcd_run decisions_per_second --workload hot; }
etcd_serial() { etcd_run p50 --workload serial; }
