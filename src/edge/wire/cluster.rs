//! The cluster: who leads, who lags, and how its membership is changed.

use serde::{Deserialize, Serialize};

use crate::edge::body::Object;
use crate::edge::problem::Problem;
use crate::replication::{ClusterView, Member, MemberView, Role};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Action {
    Join,
    Promote,
    Leave,
    Transfer,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MemberBody {
    id: u64,
    region: String,
    peer_address: String,
    /// Shown as `address`, so it may be called that here as well.
    #[serde(alias = "address")]
    client_address: String,
}

/// `POST /v1/cluster/members`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MembersBody {
    action: Action,
    #[serde(default)]
    member: Option<Object<MemberBody>>,
    #[serde(default)]
    id: Option<u64>,
}

/// A change that is wanted of the membership.
pub(crate) enum MembershipChange {
    Join(Member),
    Promote(u64),
    Leave(u64),
    Transfer(u64),
}

impl TryFrom<MembersBody> for MembershipChange {
    type Error = Problem;

    fn try_from(body: MembersBody) -> Result<MembershipChange, Problem> {
        match (body.action, body.member, body.id) {
            (Action::Join, Some(Object(member)), None) => {
                let MemberBody { id, region, peer_address, client_address } = member;
                Ok(MembershipChange::Join(Member { id, region, peer_address, client_address }))
            }
            (Action::Join, None, _) => Err(Problem::invalid("member", "joining needs the member to join")),
            (Action::Join, Some(_), Some(_)) => {
                Err(Problem::invalid("id", "joining takes the id within the member"))
            }
            (_, Some(_), _) => {
                Err(Problem::invalid("member", "only joining takes a member; this takes an id"))
            }
            (_, None, None) => Err(Problem::invalid("id", "which member is missing")),
            (Action::Promote, None, Some(id)) => Ok(MembershipChange::Promote(id)),
            (Action::Leave, None, Some(id)) => Ok(MembershipChange::Leave(id)),
            (Action::Transfer, None, Some(id)) => Ok(MembershipChange::Transfer(id)),
        }
    }
}

#[derive(Serialize)]
struct MemberAnswer<'a> {
    id: u64,
    role: Role,
    region: &'a str,
    address: &'a str,
    peer_address: &'a str,
    last_index: Option<u64>,
    applied_index: Option<u64>,
}

impl<'a> From<&'a MemberView> for MemberAnswer<'a> {
    fn from(member: &'a MemberView) -> MemberAnswer<'a> {
        MemberAnswer {
            id: member.id,
            role: member.role,
            region: &member.region,
            address: &member.client_address,
            peer_address: &member.peer_address,
            last_index: member.last_index,
            applied_index: member.applied_index,
        }
    }
}

/// `GET /v1/cluster`.
#[derive(Serialize)]
pub(crate) struct ClusterAnswer<'a> {
    cluster_id: &'a str,
    node: u64,
    leader: Option<u64>,
    term: u64,
    members: Vec<MemberAnswer<'a>>,
}

impl<'a> From<&'a ClusterView> for ClusterAnswer<'a> {
    fn from(view: &'a ClusterView) -> ClusterAnswer<'a> {
        ClusterAnswer {
            cluster_id: &view.cluster_id,
            node: view.node,
            leader: view.leader,
            term: view.term,
            members: view.members.iter().map(MemberAnswer::from).collect(),
        }
    }
}
