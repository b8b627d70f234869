//! Top-ups: what is asked, and how they stand.

use serde::Deserialize;

use crate::decision::command::{Command, ConfirmTopUp, FailTopUp};
use crate::decision::reply::{TopUpId, TopUpView};
use crate::edge::wire::evidence::Receipt;
use crate::edge::wire::json::{Derived, WriteJson, write_list, write_object};
use crate::edge::wire::quantity::AsText;
use crate::edge::wire::text::Text;
use crate::units::{Credits, Span};

/// `POST /v1/topups/{top_up}/confirm`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfirmBody<'a> {
    /// All that was asked for when absent.
    #[serde(default)]
    credits: Option<Credits>,
    /// For the record.
    #[serde(borrow, default)]
    reason: Option<Text<'a>>,
}

impl ConfirmBody<'_> {
    pub(crate) fn command(&self, id: TopUpId) -> Command<'_> {
        let reason = self.reason.as_ref().map(Text::as_str);
        Command::ConfirmTopUp(ConfirmTopUp { id, credits: self.credits, reason })
    }
}

/// `POST /v1/topups/{top_up}/fail`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FailBody<'a> {
    /// Why, for the record.
    #[serde(borrow)]
    reason: Text<'a>,
    /// How long no other one is asked for; an hour when absent.
    #[serde(default)]
    retry_after_ms: Option<u64>,
}

impl FailBody<'_> {
    pub(crate) fn command(&self, id: TopUpId) -> Command<'_> {
        let (reason, retry_after) = (self.reason.as_str(), self.retry_after_ms.map(Span));
        Command::FailTopUp(FailTopUp { id, reason, retry_after })
    }
}

/// A top-up as it stands; with a change, where that was decided.
pub(crate) struct TopUpAnswer<'a> {
    pub(crate) view: &'a TopUpView,
    pub(crate) receipt: Option<Receipt<'a>>,
}

impl WriteJson for TopUpAnswer<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let view = self.view;
        write_object!(out, {
            "id": view.id,
            "account": *view.account,
            "amount": AsText(view.amount),
            "status": Derived(&view.status),
            "created_at": AsText(view.created_at),
            "bridge": AsText(view.bridge),
            "delivered_at"?: view.delivered_at.map(AsText),
            "resolved_at"?: view.resolved_at.map(AsText),
            "credits"?: view.credits.map(AsText),
            "retry_at"?: view.retry_at.map(AsText),
            "reason"?: view.reason.as_deref(),
            "receipt"?: self.receipt,
        });
    }
}

/// `GET /v1/topups`.
pub(crate) struct TopUpsAnswer<'a> {
    pub(crate) items: &'a [TopUpView],
    pub(crate) cursor: Option<TopUpId>,
}

impl WriteJson for TopUpsAnswer<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        write_object!(out, { "items": Items(self.items), "cursor"?: self.cursor, });
    }
}

struct Items<'a>(&'a [TopUpView]);

impl WriteJson for Items<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        write_list(out, self.0.iter().map(|view| TopUpAnswer { view, receipt: None }));
    }
}
