//! Who is calling whom: carried by every call and every answer, and checked on both sides.
//!
//! A call that was meant for another cluster, for another node, for another protocol, or that comes
//! from a node which lost its disk, is refused before anything in it is looked at, and harms nobody.
//!
//! Each side also says how far its own disk and those that it knows of have come. A node that hears
//! more of itself than it has was started on an older copy of its data: it neither answers the call
//! nor looks at the answer, and ends.

use std::fmt::Display;
use std::sync::Arc;

use tokio::time::Instant;
use tonic::Status;
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};

use crate::replication::acquaintances::{Acquaintances, Sighting, Sightings};
use crate::replication::error::{OlderCopy, StorageError, full_text};
use crate::replication::identity::Identity;
use crate::replication::log::disk::WriteCount;
use crate::replication::peer::client::CallError;
use crate::replication::peer::wire::PROTOCOL;
use crate::replication::seldom::Seldom;

const CLUSTER: &str = "quorate-cluster";
const PROTOCOL_KEY: &str = "quorate-protocol";
const FROM: &str = "quorate-from";
const TO: &str = "quorate-to";
/// [`Sightings`], the speaker's own disk among them.
const SEEN: &str = "quorate-seen-bin";

/// Called when this node turns out to have been started on an older copy of its data.
pub(crate) type OnOlderCopy = Arc<dyn Fn(OlderCopy) + Send + Sync>;

#[derive(Clone)]
pub(crate) struct Passport {
    node: u64,
    incarnation: u64,
    writes: WriteCount,
    cluster: MetadataValue<Ascii>,
    from: MetadataValue<Ascii>,
    acquaintances: Arc<Acquaintances>,
    on_older_copy: OnOlderCopy,
    told: Arc<[Seldom; Objection::ALL]>,
}

/// For what a call is refused: each is said on its own, and seldom, since a node that is refused asks again and again.
#[derive(Clone, Copy, Debug)]
enum Objection {
    Protocol,
    Cluster,
    Target,
    SameNode,
    Silent,
    Stranger,
    TooMany,
    OlderCopy,
    Memory,
}

impl Objection {
    const ALL: usize = 9;
}

impl From<&Doubt> for Objection {
    fn from(doubt: &Doubt) -> Objection {
        match doubt {
            Doubt::Silent => Objection::Silent,
            Doubt::Stranger(_) => Objection::Stranger,
            Doubt::TooMany(_) => Objection::TooMany,
            Doubt::OlderCopy(_) => Objection::OlderCopy,
            Doubt::Memory(_) => Objection::Memory,
        }
    }
}

/// Why a node is not listened to.
#[derive(Debug, thiserror::Error)]
enum Doubt {
    #[error("it does not say which node it is and what it has seen")]
    Silent,
    #[error(
        "node {0} is not the one that was known under this id; a node that lost its disk must join under a \
         new id"
    )]
    Stranger(u64),
    #[error("node {0} was never met, and more nodes are known already than a cluster ever has")]
    TooMany(u64),
    #[error(transparent)]
    OlderCopy(OlderCopy),
    #[error("cannot remember who it is")]
    Memory(#[from] StorageError),
}

impl Passport {
    /// Refused when the name of the cluster cannot stand in a header.
    pub(crate) fn new(
        identity: &Identity,
        writes: WriteCount,
        acquaintances: Arc<Acquaintances>,
        on_older_copy: OnOlderCopy,
    ) -> Result<Self, String> {
        let cluster = MetadataValue::try_from(identity.cluster_id.as_str()).map_err(|_| {
            format!("{:?} is not a name for a cluster: visible ASCII only", identity.cluster_id)
        })?;
        Ok(Passport {
            node: identity.node,
            incarnation: identity.incarnation,
            writes,
            cluster,
            from: identity.node.into(),
            acquaintances,
            on_older_copy,
            told: Arc::default(),
        })
    }

    /// How many writes this node has made.
    pub(crate) fn writes(&self) -> u64 {
        self.writes.get()
    }

    /// Another node, which has shown its passport, says that it has made so many writes.
    pub(crate) fn note_writes(&self, node: u64, writes: u64) {
        self.acquaintances.note_writes(node, writes);
    }

    /// Says who is speaking, and to whom.
    pub(crate) fn show(&self, to: u64, metadata: &mut MetadataMap) {
        metadata.insert(CLUSTER, self.cluster.clone());
        metadata.insert(PROTOCOL_KEY, MetadataValue::from_static(PROTOCOL));
        metadata.insert(TO, to.into());
        self.sign(metadata);
    }

    /// Says who is answering.
    pub(crate) fn sign(&self, metadata: &mut MetadataMap) {
        let mut seen = self.acquaintances.sightings();
        let own = Sighting { incarnation: self.incarnation, writes: self.writes() };
        seen.0.insert(self.node, own);
        metadata.insert(FROM, self.from.clone());
        metadata.insert_bin(SEEN, MetadataValue::from_bytes(&seen.to_bytes()));
    }

    /// Whether the answer comes from the node that was asked, and may be looked at.
    pub(crate) fn check_answer(&self, node: u64, metadata: &MetadataMap) -> Result<(), CallError> {
        let failed = |reason: String| {
            Err(CallError::Failed { node, source: Box::new(Status::failed_precondition(reason)) })
        };
        match number(metadata, FROM) {
            Some(from) if from != node => failed(format!("node {from} answers there")),
            _ => self.judge(metadata).map(|_| ()).or_else(|doubt| failed(full_text(&doubt))),
        }
    }

    /// Who is speaking, if it may speak to this node. Where the call came from is for the log.
    pub(crate) fn check(&self, metadata: &MetadataMap, address: &dyn Display) -> Result<u64, Status> {
        let due = |objection: Objection| self.told[objection as usize].due(Instant::now());
        let refuse = |objection: Objection, reason: String| {
            if let Some(unsaid) = due(objection) {
                tracing::warn!(%address, reason, unsaid, "a peer was refused");
            }
            Err(Status::failed_precondition(reason))
        };
        if metadata.get(PROTOCOL_KEY).is_none_or(|value| value != PROTOCOL) {
            return refuse(Objection::Protocol, format!("this node speaks protocol {PROTOCOL}"));
        }
        if metadata.get(CLUSTER) != Some(&self.cluster) {
            return refuse(Objection::Cluster, "this node belongs to another cluster".to_owned());
        }
        if number(metadata, TO) != Some(self.node) {
            let reason = format!("this is node {}, not the one that was meant", self.node);
            return refuse(Objection::Target, reason);
        }
        match self.judge(metadata) {
            Ok(from) if from == self.node => {
                refuse(Objection::SameNode, format!("another process calls itself node {from}"))
            }
            Ok(from) => Ok(from),
            Err(Doubt::Memory(error)) => {
                if let Some(unsaid) = due(Objection::Memory) {
                    let error = &error as &dyn std::error::Error;
                    tracing::error!(error, unsaid, "cannot remember a peer");
                }
                Err(Status::internal("cannot remember who is calling"))
            }
            Err(doubt) => refuse((&doubt).into(), doubt.to_string()),
        }
    }

    /// Who is speaking, if that is who it was, and if this node is all that the speaker takes it for.
    /// What the speaker has seen is taken in.
    fn judge(&self, metadata: &MetadataMap) -> Result<u64, Doubt> {
        let from = number(metadata, FROM).ok_or(Doubt::Silent)?;
        let seen = metadata.get_bin(SEEN).and_then(|value| value.to_bytes().ok()).ok_or(Doubt::Silent)?;
        let mut seen = Sightings::from_bytes(&seen).ok_or(Doubt::Silent)?;
        let own = seen.0.remove(&self.node);
        if from == self.node {
            return Ok(from);
        }
        let speaker = seen.0.get(&from).ok_or(Doubt::Silent)?;
        if self.acquaintances.is_full_for(from) {
            return Err(Doubt::TooMany(from));
        }
        if !self.acquaintances.recognise(from, speaker.incarnation)? {
            return Err(Doubt::Stranger(from));
        }
        self.acquaintances.learn(&seen)?;
        match own {
            Some(own) if own.incarnation == self.incarnation && own.writes > self.writes() => {
                let (node, written) = (self.node, self.writes());
                let older = OlderCopy { node, told_by: from, written, seen: own.writes };
                (self.on_older_copy)(older);
                Err(Doubt::OlderCopy(older))
            }
            _ => Ok(from),
        }
    }
}

fn number(metadata: &MetadataMap, key: &str) -> Option<u64> {
    metadata.get(key)?.to_str().ok()?.parse().ok()
}
