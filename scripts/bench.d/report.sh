# The table of results, and how they stand to the targets, from results.tsv.

report() {
    local name
    printf '# Results of %s\n\n' "$(date -u +%Y-%m-%d)"
    printf -- '- Machine: %s, %s cores, %s GiB of memory, Linux %s, %s\n' \
        "$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)" "$(nproc)" \
        "$(awk '/^MemTotal/ { printf "%.0f", $2 / 1048576 }' /proc/meminfo)" "$(uname -r)" \
        "$(df --output=fstype "$DATA" | tail -n 1)"
    printf -- '- Load average when it began: %s\n' "$load"
    for name in "${contenders[@]}"; do
        printf -- '- %s: %s\n' "$name" "$("${name}_version")"
    done
    printf -- '- %s rounds, %s s each after %s s of warm-up; %s connections, %s accounts, batches of %s\n\n' \
        "$rounds" "$seconds" "$warmup" "$CONNECTIONS" "$ACCOUNTS" "$BATCH"
    awk -F'\t' '
        function sorted_insert(key, value,    at) {
            for (at = count[key]++; at > 0 && values[key, at - 1] > value; at--) values[key, at] = values[key, at - 1]
            values[key, at] = value
        }
        function median(key,    n) {
            n = count[key]
            return n % 2 ? values[key, (n - 1) / 2] : (values[key, n / 2 - 1] + values[key, n / 2]) / 2
        }
        function grouped(number,    text, out) {
            text = sprintf("%.0f", number)
            while (length(text) > 3) { out = "," substr(text, length(text) - 2) out; text = substr(text, 1, length(text) - 3) }
            return text out
        }
        # One target: what is compared, the measured ratio, and whether it is on the right side of the bound.
        function target(text, over, under, bound, upper,    ratio) {
            if (!count[over] || !count[under] || !median(under)) return
            ratio = median(over) / median(under)
            printf "| %s | %s %g | %.2f | %s |\n", text, upper ? "at most" : "at least", bound, ratio, \
                (upper ? ratio <= bound : ratio >= bound) ? "met" : "missed"
        }
        { key = $1 SUBSEP $2; if (!(key in count)) order[++keys] = key; sorted_insert(key, $4 + 0) }
        END {
            unit["serial"] = "µs, p50"; unit["setup"] = "ms"; unit["memory"] = "bytes an account and node"
            print "| work | contender | min | median | max | unit |"
            print "|---|---|---:|---:|---:|---|"
            for (at = 1; at <= keys; at++) {
                key = order[at]; split(key, part, SUBSEP); n = count[key]
                what = part[1] in unit ? unit[part[1]] : "decisions a second"
                if (part[1] == "serial" && part[2] == "postgresql") what = "µs, mean"
                printf "| %s | %s | %s | **%s** | %s | %s |\n", part[1], part[2], grouped(values[key, 0]), \
                    grouped(median(key)), grouped(values[key, n - 1]), what
            }
            print "\n| target | bound | measured | |"
            print "|---|---|---:|---|"
            q = SUBSEP "quorate"; e = SUBSEP "etcd"; r = SUBSEP "redis"; p = SUBSEP "postgresql"
            target("single requests, over etcd", "single" q, "single" e, 4)
            target("single requests, over PostgreSQL", "single" q, "single" p, 1.2)
            target("single requests, over Redis", "single" q, "single" r, 0.6)
            target("batches, over Redis", "batch" q, "batch" r, 1.5)
            target("batches, over PostgreSQL", "batch" q, "batch" p, 1)
            target("one account, over 10,000 accounts", "hot" q, "single" q, 0.9)
            target("one account, over PostgreSQL", "hot" q, "hot" p, 8)
            target("one connection p50, over etcd", "serial" q, "serial" e, 1, 1)
            target("1,000,000 accounts, over 10,000", "million" q, "ten_thousand" q, 0.8)
        }' "$RESULTS"
}
