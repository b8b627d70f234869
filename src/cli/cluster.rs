//! `quorate cluster`: who is in it, who leads, who lags; join, promote, leave, transfer.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Subcommand;

use crate::cli::output::{self, Table};
use crate::cli::{CliError, Done, Global};
use crate::client::{Answer, Client, ClusterView, MemberRequest, MembersChange, NodeUrl, Options};

/// How long one node may take to say what it knows.
const VIEW_TIMEOUT: Duration = Duration::from_secs(1);
/// How often all nodes are asked before a view other than the leader's is shown, and the pause between.
const VIEW_TRIES: u32 = 5;
const VIEW_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Subcommand)]
pub(super) enum ClusterCommand {
    /// Show who leads and who lags
    ///
    /// What is shown is what the leader sees: `last` is the last entry of a node's log, as far as the leader
    /// knows it, and `applied` is how far the node says that it has applied the log. A dash stands for what
    /// nobody who was asked could say: that node, or the leader, did not answer.
    Status,
    /// Add a node as a learner: it is sent everything and has no vote yet
    Join {
        /// Its id, never used before in this cluster
        #[arg(long)]
        id: u64,
        /// Where it stands: a name for people, shown by `status`
        #[arg(long)]
        region: String,
        /// Where the other nodes reach it, such as 10.0.0.4:7200
        #[arg(long, value_name = "HOST:PORT")]
        peer_address: String,
        /// Where clients reach it, such as 10.0.0.4:7100
        #[arg(long, value_name = "HOST:PORT")]
        client_address: String,
    },
    /// Give a learner that has caught up a vote
    Promote {
        /// The id of the learner
        id: u64,
    },
    /// Take a node out of the cluster
    Leave {
        /// The id of the node, which is used up by this
        id: u64,
    },
    /// Hand the leadership to a node
    Transfer {
        /// The id of the node that is to lead
        id: u64,
    },
}

pub(super) async fn run(command: ClusterCommand, global: &Global) -> Result<Done, CliError> {
    let client = global.client()?;
    let answer = match command {
        ClusterCommand::Status => client.cluster().await?,
        ClusterCommand::Join { id, region, peer_address, client_address } => {
            let member = MemberRequest {
                id,
                region: &region,
                peer_address: &peer_address,
                client_address: &client_address,
            };
            client.change_members(&MembersChange::Join { member }).await?
        }
        ClusterCommand::Promote { id } => client.change_members(&MembersChange::Promote { id }).await?,
        ClusterCommand::Leave { id } => client.change_members(&MembersChange::Leave { id }).await?,
        ClusterCommand::Transfer { id } => client.change_members(&MembersChange::Transfer { id }).await?,
    };
    let answer = leaders_view(global, answer).await?;
    Ok(Done::ok(match global.json {
        true => output::json(&answer.body),
        false => view(&answer.value),
    }))
}

/// What the leader sees, since it alone knows who lags, and a node that was left behind or left the
/// cluster knows only its past. Where no node says that it leads, the answer that was there. How far
/// each node has applied, it alone can say: for people that is added.
async fn leaders_view(global: &Global, first: Answer<ClusterView>) -> Result<Answer<ClusterView>, CliError> {
    let secure = global.nodes.iter().any(NodeUrl::is_secure);
    let scheme = if secure { "https" } else { "http" };
    let mut nodes = global.nodes.clone();
    for member in &first.value.members {
        if let Ok(node) = format!("{scheme}://{}", member.address).parse()
            && !nodes.contains(&node)
        {
            nodes.push(node);
        }
    }
    let leads = |view: &ClusterView| view.leader == Some(view.node);
    let mut latest = first;
    let mut applied = BTreeMap::new();
    for tried in 0..VIEW_TRIES {
        if tried > 0 {
            tokio::time::sleep(VIEW_PAUSE).await;
        }
        for node in &nodes {
            let one = Options { nodes: vec![node.clone()], deadline: VIEW_TIMEOUT, ..global.options() };
            // Who does not answer does not lead, as far as can be seen from here.
            let Ok(answer) = Client::new(Options { attempt_timeout: VIEW_TIMEOUT, ..one })?.cluster().await
            else {
                continue;
            };
            let (new, old) = (&answer.value, &latest.value);
            let own = new.members.iter().find(|member| member.id == new.node);
            applied.insert(new.node, own.and_then(|member| member.applied_index));
            if (new.term, leads(new)) > (old.term, leads(old)) {
                latest = answer;
            }
        }
        if leads(&latest.value) {
            break;
        }
    }
    for member in &mut latest.value.members {
        member.applied_index = applied.get(&member.id).copied().flatten().or(member.applied_index);
    }
    Ok(latest)
}

fn view(cluster: &ClusterView) -> String {
    let leader = match cluster.leader {
        Some(leader) => format!("led by node {leader} in term {}", cluster.term),
        None => format!("without a leader in term {}", cluster.term),
    };
    let mut text = format!("cluster {}: {leader}, as node {} sees it\n", cluster.cluster_id, cluster.node);
    let mut table = Table::new(&[0, 5, 6]);
    let head = ["node", "role", "region", "clients", "peers", "last", "applied"];
    table.row(head.map(str::to_owned));
    let index = |index: Option<u64>| index.map_or_else(|| "-".into(), |index| index.to_string());
    for member in &cluster.members {
        table.row([
            member.id.to_string(),
            member.role.clone(),
            member.region.clone(),
            member.address.clone(),
            member.peer_address.clone(),
            index(member.last_index),
            index(member.applied_index),
        ]);
    }
    text.push_str(&table.lines(2));
    if cluster.members.iter().any(|member| member.last_index.is_none() || member.applied_index.is_none()) {
        text.push_str("  -: nobody who answered knows\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(last_index: Option<u64>) -> String {
        let member =
            serde_json::json!({"id": 1, "role": "follower", "last_index": last_index, "applied_index": 7});
        let cluster = serde_json::json!({"node": 1, "leader": null, "term": 2, "members": [member]});
        view(&serde_json::from_value(cluster).expect("a cluster"))
    }

    #[test]
    fn a_dash_is_explained_where_there_is_one() {
        const EXPLAINED: &str = "-: nobody who answered knows\n";
        assert!(told(None).ends_with(EXPLAINED), "{}", told(None));
        assert!(!told(Some(7)).contains(EXPLAINED), "{}", told(Some(7)));
    }
}
