# PostgreSQL: one server, unreplicated, that syncs before it answers; a conditional update, prepared,
# driven by pgbench over TCP like all the others. What deadlocks is tried again by pgbench.

readonly POSTGRESQL_PORT=17432
postgresql_bin="$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -n 1 || true)"

postgresql_missing() {
    if [ ! -x "$postgresql_bin/postgres" ] || ! command -v pgbench >/dev/null; then
        echo "postgresql is not installed (--install does)"
    elif [ "$(id -u)" = 0 ] && ! postgresql_as true 2>/dev/null; then
        echo "PostgreSQL refuses to run as root, and there is no other user to run it as"
    elif [ "$(id -u)" = 0 ] && ! postgresql_as test -x "$DATA"; then
        echo "the user that PostgreSQL runs as cannot reach $DATA"
    else
        return 1
    fi
}

postgresql_version() {
    "$postgresql_bin/postgres" --version
}

# Runs a command as a user that PostgreSQL accepts.
postgresql_as() {
    local user=postgres
    if [ "$(id -u)" != 0 ]; then
        "$@"
        return
    fi
    id "$user" >/dev/null 2>&1 || user=nobody
    setpriv --reuid "$user" --regid "$(id -g "$user")" --clear-groups -- "$@"
}

postgresql_sql() {
    psql -h 127.0.0.1 -p "$POSTGRESQL_PORT" -U bench -d postgres -qAt -v ON_ERROR_STOP=1 "$@"
}

postgresql_start() {
    local data="$DATA/postgresql/data" row
    rm -rf "$DATA/postgresql"
    mkdir -p "$data"
    if [ "$(id -u)" = 0 ]; then
        chown "$(postgresql_as id -u)" "$data"
    fi
    chmod 700 "$data"
    (cd / && postgresql_as "$postgresql_bin/initdb" -D "$data" -U bench -A trust) >"$DATA/postgresql-initdb.log" 2>&1
    cat >"$DATA/postgresql/one.sql" <<SQL
\\set id random(1, $ACCOUNTS)
UPDATE accounts SET balance = balance - 1 WHERE id = :id AND balance >= 1 RETURNING balance;
SQL
    cat >"$DATA/postgresql/hot.sql" <<SQL
UPDATE accounts SET balance = balance - 1 WHERE id = 1 AND balance >= 1 RETURNING balance;
SQL
    # Scattered rows, as in the batches of the others.
    {
        for row in $(seq "$BATCH"); do printf '\\set r%s random(1, %s)\n' "$row" "$ACCOUNTS"; done
        printf 'UPDATE accounts SET balance = balance - 1 WHERE id = ANY(ARRAY[:r1::int'
        for row in $(seq 2 "$BATCH"); do printf ', :r%s' "$row"; done
        printf ']) AND balance >= 1 RETURNING balance;\n'
    } >"$DATA/postgresql/scattered.sql"
    # Neighbouring rows: the kindest choice, since they lie on few pages and are locked in one order.
    cat >"$DATA/postgresql/near.sql" <<SQL
\\set id random(1, $((ACCOUNTS - BATCH + 1)))
UPDATE accounts SET balance = balance - 1 WHERE id BETWEEN :id AND :id + $((BATCH - 1)) AND balance >= 1 RETURNING balance;
SQL
    pushd / >/dev/null
    start postgresql postgresql_as_exec "$postgresql_bin/postgres" -D "$data" -p "$POSTGRESQL_PORT" \
        -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=on -c synchronous_commit=on \
        -c shared_buffers=256MB -c max_connections=100 -c max_wal_size=4GB
    popd >/dev/null
    wait_for "PostgreSQL" postgresql_sql -c 'SELECT 1'
    # Room on every page, so that an update stays on it and the index needs none.
    postgresql_sql -c "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL) WITH (fillfactor = 50)" \
        -c "INSERT INTO accounts SELECT id, 1000000000 FROM generate_series(1, $ACCOUNTS) id" \
        -c "VACUUM ANALYZE accounts" -c "CHECKPOINT"
}

# As postgresql_as, but the process that was started is the server itself, so that its id is the one to stop.
postgresql_as_exec() {
    local user=postgres
    [ "$(id -u)" = 0 ] || exec "$@"
    id "$user" >/dev/null 2>&1 || user=nobody
    exec setpriv --reuid "$user" --regid "$(id -g "$user")" --clear-groups -- "$@"
}

# One run of pgbench: postgresql_pgbench SCRIPT CONNECTIONS SECONDS prints transactions per second and their mean in ms.
postgresql_pgbench() {
    pgbench -h 127.0.0.1 -p "$POSTGRESQL_PORT" -U bench -n -M prepared --max-tries 100 -f "$DATA/postgresql/$1.sql" -c "$2" -j 1 -T "$3" \
        postgres 2>&1 | tee -a "$DATA/postgresql-runs.log" |
        awk '/^latency average/ { mean = $4 } /^tps/ { rate = $3 } END { print rate, mean }'
}

postgresql_run() {
    postgresql_pgbench "$1" "$2" "$warmup" >/dev/null
    postgresql_pgbench "$1" "$2" "$seconds"
}

postgresql_single() { postgresql_run one "$CONNECTIONS" | awk '{ printf "%.0f\n", $1 }'; }
postgresql_hot() { postgresql_run hot "$CONNECTIONS" | awk '{ printf "%.0f\n", $1 }'; }
postgresql_serial() { postgresql_run one 1 | awk '{ printf "%.0f\n", $2 * 1000 }'; }
postgresql_batch() { postgresql_run near "$CONNECTIONS" | awk -v n="$BATCH" '{ printf "%.0f\n", $1 * n }'; }
postgresql_batch_scattered() { postgresql_run scattered "$CONNECTIONS" | awk -v n="$BATCH" '{ printf "%.0f\n", $1 * n }'; }
