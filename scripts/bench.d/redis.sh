# Redis: one server, unreplicated, that syncs its append-only file before it answers; a token bucket in
# Lua, called by its hash without pipelining, driven by redis-benchmark.

readonly REDIS_PORT=17379

redis_missing() {
    command -v redis-server >/dev/null && command -v redis-benchmark >/dev/null && return 1
    echo "redis-server is not installed (--install does)"
}

redis_version() {
    redis-server --version
}

# Takes one token from the bucket of every key: 1 if there was one, else 0; for many keys, how many.
readonly REDIS_BUCKET="
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local capacity, per_ms = tonumber(ARGV[1]), tonumber(ARGV[2])
local admitted = 0
for _, key in ipairs(KEYS) do
  local bucket = redis.call('HMGET', key, 'tokens', 'at')
  local tokens = math.min(capacity, (tonumber(bucket[1]) or capacity) + (now - (tonumber(bucket[2]) or now)) * per_ms)
  if tokens >= 1 then
    redis.call('HSET', key, 'tokens', tokens - 1, 'at', now)
    admitted = admitted + 1
  end
end
return admitted"

redis_start() {
    rm -rf "$DATA/redis"
    mkdir -p "$DATA/redis"
    start redis redis-server --port "$REDIS_PORT" --bind 127.0.0.1 --dir "$DATA/redis" --daemonize no \
        --appendonly yes --appendfsync always --save ''
    wait_for "Redis" redis-cli -p "$REDIS_PORT" ping
    redis_bucket="$(redis-cli -p "$REDIS_PORT" SCRIPT LOAD "$REDIS_BUCKET")"
}

# One run of redis-benchmark: redis_benchmark CONNECTIONS REQUESTS KEYS… prints requests per second and the p50 in ms.
redis_benchmark() {
    local connections="$1" requests="$2"
    shift 2
    redis-benchmark -p "$REDIS_PORT" -c "$connections" -n "$requests" -r "$ACCOUNTS" --csv \
        EVALSHA "$redis_bucket" "$#" "$@" 86400000 1 2>>"$DATA/redis-runs.log" | tee -a "$DATA/redis-runs.log" |
        awk -F'","' 'END { gsub(/"/, "", $NF); print $(NF - 6), $(NF - 3) }'
}

# The warm-up tells how many requests fill the time, since redis-benchmark counts and keeps no time.
redis_run() {
    local connections="$1" probe="$2" rate
    shift 2
    rate="$(redis_benchmark "$connections" "$probe" "$@" | cut -d' ' -f1)"
    redis_benchmark "$connections" "$(awk -v r="$rate" -v s="$warmup" 'BEGIN { printf "%d", r * s + 1 }')" "$@" >/dev/null
    redis_benchmark "$connections" "$(awk -v r="$rate" -v s="$seconds" 'BEGIN { printf "%d", r * s + 1 }')" "$@"
}

redis_single() { redis_run "$CONNECTIONS" 10000 a:__rand_int__ | cut -d' ' -f1; }
redis_hot() { redis_run "$CONNECTIONS" 10000 a:1 | cut -d' ' -f1; }
redis_serial() { redis_run 1 1000 a:__rand_int__ | awk '{ printf "%.0f\n", $2 * 1000 }'; }
redis_batch() {
    local keys=() count
    for count in $(seq "$BATCH"); do keys+=(a:__rand_int__); done
    redis_run "$CONNECTIONS" 2000 "${keys[@]}" | awk -v n="$BATCH" '{ printf "%.0f\n", $1 * n }'
}
