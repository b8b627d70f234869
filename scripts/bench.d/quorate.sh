# Quorate: three nodes, connections spread over them, driven by `quorate bench`.

readonly QUORATE_NODES_BENCH=http://127.0.0.1:17101,http://127.0.0.1:17102,http://127.0.0.1:17103
quorate_pids=()

# Says why it cannot take part, or fails when it can.
quorate_missing() {
    "$QUORATE" serve --help >/dev/null 2>&1 && return 1
    echo "$QUORATE cannot serve"
}

quorate_version() {
    "$QUORATE" --version
}

# Writes the configuration of a node: quorate_config NAME ID PORTS MORE
quorate_config() {
    local name="$1" id="$2" ports="$3" more="$4" other
    printf 'cluster_id = "bench"\ndata_dir = "%s"\n' "$DATA/$name/node$id"
    printf '[node]\nid = %s\nregion = "bench"\n' "$id"
    printf '[client]\nlisten = "127.0.0.1:%s"\n' "$((ports + 100 + id))"
    printf '[peer]\nlisten = "127.0.0.1:%s"\naddress = "127.0.0.1:%s"\n' "$((ports + 200 + id))" "$((ports + 200 + id))"
    for other in 1 2 3; do
        printf '[[founders]]\nid = %s\nregion = "bench"\n' "$other"
        printf 'peer_address = "127.0.0.1:%s"\nclient_address = "127.0.0.1:%s"\n' \
            "$((ports + 200 + other))" "$((ports + 100 + other))"
    done
    printf '%b' "$more"
}

# Starts a node that has its configuration: quorate_node NAME ID
quorate_node() {
    QUORATE_LOG=warn start "$1-node$2" "$QUORATE" serve --config "$DATA/$1/node$2.toml"
    [ "$1" != quorate ] || quorate_pids[$2]="$!"
}

# Starts three nodes: quorate_nodes NAME PORTS MORE
quorate_nodes() {
    local name="$1" ports="$2" more="$3" id
    rm -rf "${DATA:?}/$name"
    mkdir -p "$DATA/$name"
    for id in 1 2 3; do
        quorate_config "$name" "$id" "$ports" "$more" >"$DATA/$name/node$id.toml"
        quorate_node "$name" "$id"
    done
}

# Makes what the works need: quorate_prepare WHAT
quorate_prepare() {
    # Three connections, so that every node has to answer.
    wait_for "$1" quorate_ask --setup --accounts 1 --connections 3 --count 3 --warmup 0s --duration 5s
    quorate_ask --setup --duration 0s --accounts "$ACCOUNTS" >"$DATA/quorate-setup.json"
    case ",$works," in *,credits,* | *,holds,*)
        quorate_ask --setup --pay credits --duration 0s --accounts "$ACCOUNTS" >"$DATA/quorate-credits.json" ;;
    esac
    case ",$works," in *,wallet8,*)
        quorate_ask --setup --pay wallet8 --prefix wallet8- --duration 0s --accounts "$ACCOUNTS" >"$DATA/quorate-wallet8.json" ;;
    esac
}

quorate_start() {
    quorate_nodes quorate 17000 ''
    quorate_prepare "the Quorate cluster"
}

quorate_ask() {
    "$QUORATE" --json --node "${nodes:-$QUORATE_NODES_BENCH}" bench "$@"
}

# One measured run: quorate_run FIELD ARGUMENTS…
quorate_run() {
    local wanted="$1"
    shift
    quorate_ask --duration "${seconds}s" --warmup "${warmup}s" --connections "$CONNECTIONS" \
        --accounts "${accounts:-$ACCOUNTS}" --seed "$RANDOM" "$@" | tee -a "$DATA/quorate-runs.json" | field "$wanted"
}

quorate_single() { quorate_run decisions_per_second; }
quorate_keyed() { quorate_run decisions_per_second --keys; }
quorate_credits() { quorate_run decisions_per_second --pay credits; }
quorate_batch() { quorate_run decisions_per_second --workload batch --batch "$BATCH"; }
quorate_holds() { quorate_run decisions_per_second --workload holds --pay credits; }
# The work `credits` on accounts of their own, whose wallets have eight grants.
quorate_wallet8() { quorate_run decisions_per_second --pay wallet8 --prefix wallet8-; }
quorate_hot() { quorate_run decisions_per_second --workload hot; }
quorate_serial() { quorate_run p50 --workload serial; }

# The resident memory of the three nodes in KiB.
quorate_resident_kib() {
    local pid
    for pid in "${quorate_pids[@]}"; do
        sed -n 's/^VmRSS:[^0-9]*\([0-9]*\) kB/\1/p' "/proc/$pid/status"
    done | awk '{ sum += $1 } END { print sum }'
}

# The same work on the first 10,000 accounts and on a million, in alternation, once there are a million.
quorate_million() {
    local before after round few many
    before="$(quorate_resident_kib)"
    say "making 1,000,000 accounts"
    quorate_ask --setup --duration 0s --accounts 1000000 >"$DATA/quorate-million.json"
    after="$(quorate_resident_kib)"
    record setup quorate 1 "$(field elapsed_ms <"$DATA/quorate-million.json")"
    record memory quorate 1 "$(awk -v a="$after" -v b="$before" 'BEGIN { printf "%.0f", (a - b) * 1024 / 3 / 990000 }')"
    for round in $(seq "$rounds"); do
        few="$(quorate_run decisions_per_second)"
        many="$(accounts=1000000 quorate_run decisions_per_second)"
        record ten_thousand quorate "$round" "$few"
        record million quorate "$round" "$many"
    done
}

# Stops nodes in order, which leaves a checkpoint of all that they have applied: quorate_stop ID…
quorate_stop() {
    local id
    for id in "$@"; do kill -TERM "${quorate_pids[$id]}"; done
    for id in "$@"; do wait "${quorate_pids[$id]}" || fail "node $id did not end in order"; done
}

# Starts nodes and prints how many milliseconds it takes until all of them are ready: quorate_restart ID…
quorate_restart() {
    local id began ended
    began="$(date +%s%3N)"
    for id in "$@"; do quorate_node quorate "$id"; done
    for id in "$@"; do
        wait_for "node $id" curl --silent --fail --max-time 2 --output /dev/null "http://127.0.0.1:$((17100 + id))/readyz"
    done
    ended="$(date +%s%3N)"
    restarted_ms="$((ended - began))"
}

# Keeps the resident memory of each node in MiB: quorate_memory WHEN
quorate_memory() {
    local id kib
    for id in 1 2 3; do
        kib="$(sed -n 's/^VmRSS:[^0-9]*\([0-9]*\) kB/\1/p' "/proc/${quorate_pids[$id]}/status")"
        record "memory_$1_MiB" "node$id" 1 "$((kib / 1024))"
    done
}

# A million accounts with a wallet each: what a node takes in memory, and how long it takes to start with them.
quorate_million_wallets() {
    say "starting three nodes and making 1,000,000 accounts with a wallet each"
    quorate_nodes quorate 17000 ''
    wait_for "the Quorate cluster" quorate_ask --setup --accounts 1 --connections 3 --count 3 --warmup 0s --duration 5s
    quorate_ask --setup --pay credits --duration 0s --prefix wallet- --accounts 1000000 >"$DATA/quorate-million-wallets.json"
    record setup_ms cluster 1 "$(field elapsed_ms <"$DATA/quorate-million-wallets.json")"
    quorate_memory made
    say "restarting a node, which takes a checkpoint as it stops and starts from it"
    quorate_stop 3
    quorate_restart 3
    record restart_ms node3 1 "$restarted_ms"
    say "restarting the whole cluster"
    quorate_stop 1 2 3
    quorate_restart 1 2 3
    record restart_ms cluster 1 "$restarted_ms"
    quorate_memory restarted
    say "deciding on them again"
    record decisions_per_second wallets 1 "$(accounts=1000000 quorate_run decisions_per_second --pay credits --prefix wallet-)"
}
