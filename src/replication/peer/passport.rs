//! Who is calling whom: carried by every call and every answer, and checked on both sides.
//!
//! A call that was meant for another cluster, for another node, for another protocol, or that comes
//! from a node which lost its disk, is refused before anything in it is looked at, and harms nobody.

use std::sync::Arc;

use tonic::Status;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

use crate::replication::identity::{Acquaintances, Identity};
use crate::replication::peer::client::CallError;
use crate::replication::peer::wire::PROTOCOL;

const CLUSTER: &str = "quorate-cluster";
const PROTOCOL_KEY: &str = "quorate-protocol";
const FROM: &str = "quorate-from";
const INCARNATION: &str = "quorate-incarnation";
const TO: &str = "quorate-to";

#[derive(Clone)]
pub(crate) struct Passport {
    node: u64,
    cluster: MetadataValue<Ascii>,
    from: MetadataValue<Ascii>,
    incarnation: MetadataValue<Ascii>,
    acquaintances: Arc<Acquaintances>,
}

impl Passport {
    /// Refused when the name of the cluster cannot stand in a header.
    pub(crate) fn new(identity: &Identity, acquaintances: Arc<Acquaintances>) -> Result<Self, String> {
        let cluster = MetadataValue::try_from(identity.cluster_id.as_str()).map_err(|_| {
            format!("{:?} is not a name for a cluster: visible ASCII only", identity.cluster_id)
        })?;
        Ok(Passport {
            node: identity.node,
            cluster,
            from: identity.node.into(),
            incarnation: identity.incarnation.into(),
            acquaintances,
        })
    }

    /// Says who is speaking, and to whom.
    pub(crate) fn show(&self, to: u64, metadata: &mut MetadataMap) {
        metadata.insert(CLUSTER, self.cluster.clone());
        metadata.insert(PROTOCOL_KEY, MetadataValue::from_static(PROTOCOL));
        metadata.insert(FROM, self.from.clone());
        metadata.insert(INCARNATION, self.incarnation.clone());
        metadata.insert(TO, to.into());
    }

    /// Says who is answering.
    pub(crate) fn sign(&self, metadata: &mut MetadataMap) {
        metadata.insert(FROM, self.from.clone());
        metadata.insert(INCARNATION, self.incarnation.clone());
    }

    /// Whether the answer comes from the node that was asked.
    pub(crate) fn check_answer(&self, node: u64, metadata: &MetadataMap) -> Result<(), CallError> {
        let failed = |reason: String| {
            Err(CallError::Failed { node, source: Box::new(Status::failed_precondition(reason)) })
        };
        let (Some(from), Some(incarnation)) = (number(metadata, FROM), number(metadata, INCARNATION)) else {
            return failed("the answer does not say which node it is from".to_owned());
        };
        if from != node {
            return failed(format!("node {from} answers there"));
        }
        match self.acquaintances.recognise(from, incarnation) {
            Ok(true) => Ok(()),
            Ok(false) => failed(format!(
                "node {from} is not the one that was known under this id; a node that lost its disk \
                 must join under a new id"
            )),
            Err(error) => failed(format!("cannot remember who answered: {error}")),
        }
    }

    /// Who is speaking, if it may speak to this node.
    pub(crate) fn check(&self, metadata: &MetadataMap) -> Result<u64, Status> {
        let refuse = |reason: String| {
            tracing::warn!(reason, "a peer was refused");
            Err(Status::failed_precondition(reason))
        };
        if metadata.get(PROTOCOL_KEY).is_none_or(|value| value != PROTOCOL) {
            return refuse(format!("this node speaks protocol {PROTOCOL}"));
        }
        if metadata.get(CLUSTER) != Some(&self.cluster) {
            return refuse("this node belongs to another cluster".to_owned());
        }
        if number(metadata, TO) != Some(self.node) {
            return refuse(format!("this is node {}, not the one that was meant", self.node));
        }
        let (Some(from), Some(incarnation)) = (number(metadata, FROM), number(metadata, INCARNATION)) else {
            return refuse("the caller does not say which node it is".to_owned());
        };
        if from == self.node {
            return refuse(format!("another process calls itself node {from}"));
        }
        match self.acquaintances.recognise(from, incarnation) {
            Ok(true) => Ok(from),
            Ok(false) => refuse(format!(
                "node {from} is not the one that was known under this id; a node that lost its disk \
                 must join under a new id"
            )),
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "cannot remember a peer");
                Err(Status::internal("cannot remember who is calling"))
            }
        }
    }
}

fn number(metadata: &MetadataMap, key: &str) -> Option<u64> {
    metadata.get(key)?.to_str().ok()?.parse().ok()
}
