# The same three nodes of Quorate without the record of usage, charges and postings: only to see what that costs.
# The switch is for benchmarks alone; such nodes' books can never be proved.

readonly WITHOUT_FACTS_NODES=http://127.0.0.1:18101,http://127.0.0.1:18102,http://127.0.0.1:18103

without_facts_missing() { quorate_missing; }

without_facts_version() { quorate_version; }

without_facts_start() {
    quorate_nodes without_facts 18000 '[replication]\nno_facts_for_benchmarks = true\n'
    nodes="$WITHOUT_FACTS_NODES" quorate_prepare "the cluster without facts"
}

without_facts_single() { nodes="$WITHOUT_FACTS_NODES" quorate_single; }
without_facts_credits() { nodes="$WITHOUT_FACTS_NODES" quorate_credits; }
without_facts_batch() { nodes="$WITHOUT_FACTS_NODES" quorate_batch; }
without_facts_holds() { nodes="$WITHOUT_FACTS_NODES" quorate_holds; }
without_facts_wallet8() { nodes="$WITHOUT_FACTS_NODES" quorate_wallet8; }
