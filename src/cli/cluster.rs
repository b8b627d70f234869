//! `quorate cluster`: who is in it, who leads, who lags; join, promote, leave, transfer.

use clap::Subcommand;

use crate::cli::output::{self, Table};
use crate::cli::{CliError, Done, Global};
use crate::client::{ClusterView, MemberRequest, MembersChange};

#[derive(Debug, Subcommand)]
pub(super) enum ClusterCommand {
    /// Show who leads and who lags
    Status,
    /// Add a node as a learner: it is sent everything and has no vote yet
    Join {
        /// Its id, never used before in this cluster
        #[arg(long)]
        id: u64,
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
    Promote { id: u64 },
    /// Take a node out of the cluster
    Leave { id: u64 },
    /// Hand the leadership to a node
    Transfer { id: u64 },
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
    Ok(Done::ok(match global.json {
        true => output::json(&answer.body),
        false => view(&answer.value),
    }))
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
    text
}
