//! Admissions, one or many a request, asked of a Quorate node.

use super::connection::number;
use super::connection::{Answer, Connection};
use super::peer::{AskError, Decided, shown};
use super::request::{self, Body, Random, Template};
use super::{Pay, Plan, Workload};

/// The feature whose requests a token bucket of the plan pays for.
pub(super) const LIMIT_FEATURE: &str = "bench.limit";
/// The feature whose requests cost a credit each.
pub(super) const CREDITS_FEATURE: &str = "bench.credits";

pub(super) struct QuorateClient {
    template: Template,
    random: Random,
    accounts: u32,
    /// The latest idempotency key: 24 bits of the run, 12 of the connection, 28 of a sequence.
    key: u64,
    batch: bool,
    /// What a hold is settled with.
    settling: Option<Settling>,
}

/// How a settlement is sent to the node of a connection.
struct Settling {
    plan: Plan,
    node: String,
}

/// How long a hold lasts if it is never settled.
const HOLD_TTL_MS: u64 = 60_000;

impl QuorateClient {
    pub fn new(plan: &Plan, connection: usize, run: u32) -> QuorateClient {
        let node = &plan.nodes[connection % plan.nodes.len()];
        let batch = plan.workload == Workload::Batch;
        let template = match batch {
            false => Template::post(
                plan,
                node,
                "/v1/admissions",
                plan.keys,
                admission(plan, Body::default(), false),
            ),
            true => {
                let mut body = Body::default().text("{\"admissions\":[");
                for position in 0..plan.batch {
                    body = body.text(if position == 0 { "" } else { "," });
                    body = admission(plan, body, plan.keys);
                }
                Template::post(plan, node, "/v1/admissions/batch", false, body.text("]}"))
            }
        };
        QuorateClient {
            template,
            random: Random::new(plan.seed, connection as u64),
            accounts: plan.accounts,
            key: u64::from(run) << 40 | (connection as u64) << 28,
            batch,
            settling: (plan.workload == Workload::Holds)
                .then(|| Settling { plan: plan.clone(), node: node.clone() }),
        }
    }

    pub async fn ask(&mut self, connection: &mut Connection) -> Result<Decided, AskError> {
        let QuorateClient { template, random, accounts, key, batch, settling } = self;
        let request = template.fill(
            || random.below(*accounts),
            || {
                *key += 1;
                *key
            },
        );
        let answer = connection.exchange(request).await?;
        if *batch {
            return many(&answer);
        }
        let decided = one(&answer)?;
        match settling {
            Some(settling) if decided.admitted == 1 => {
                let held = answer.body.to_vec();
                settling.settle(&held, connection).await
            }
            _ => Ok(decided),
        }
    }
}

impl Settling {
    /// Settles what `held` admitted, for what was reserved.
    async fn settle(&self, held: &[u8], connection: &mut Connection) -> Result<Decided, AskError> {
        let id = admission_id(held).ok_or_else(|| AskError::Answer { body: shown(held) })?;
        let path = format!("/v1/admissions/{id}/settle");
        let body = r#"{"usage":{"requests":1},"final":true}"#;
        let request = request::once(&self.plan, &self.node, "POST", &path, "", body);
        one(&connection.exchange(&request).await?)
    }
}

/// The id in the answer to an admission.
fn admission_id(answer: &[u8]) -> Option<&str> {
    const ADMISSION: &[u8] = b"\"admission\":\"";
    let start = memchr::memmem::find(answer, ADMISSION)? + ADMISSION.len();
    let length = memchr::memchr(b'"', &answer[start..])?;
    std::str::from_utf8(&answer[start..start + length]).ok()
}

/// The body of one admission.
fn admission(plan: &Plan, body: Body, key: bool) -> Body {
    let feature = match plan.pay {
        Pay::Limit => LIMIT_FEATURE,
        Pay::Credits | Pay::Wallet8 => CREDITS_FEATURE,
    };
    let mut body = body
        .text(&format!("{{\"account\":\"{}", plan.prefix))
        .account()
        .text(&format!("\",\"feature\":\"{feature}\",\"usage\":{{\"requests\":1}}"));
    if plan.workload == Workload::Holds {
        body = body.text(&format!(",\"hold\":{{\"ttl_ms\":{HOLD_TTL_MS}}}"));
    }
    if key {
        body = body.text(",\"key\":\"").key().text("\"");
    }
    body.text("}")
}

/// What the status of a decision says; `None` where it is no decision about the account.
fn decided(status: usize) -> Option<Decided> {
    match status {
        200 => Some(Decided { admitted: 1, refused: 0 }),
        402 | 429 => Some(Decided { admitted: 0, refused: 1 }),
        _ => None,
    }
}

fn one(answer: &Answer<'_>) -> Result<Decided, AskError> {
    decided(usize::from(answer.status)).ok_or_else(|| AskError::status(answer))
}

/// Counts the decisions of a batch by their `status`, which each result has exactly once.
fn many(answer: &Answer<'_>) -> Result<Decided, AskError> {
    const STATUS: &[u8] = b"\"status\":";
    if answer.status != 200 {
        return Err(AskError::status(answer));
    }
    let mut all = Decided::default();
    for at in memchr::memmem::find_iter(answer.body, STATUS) {
        let rest = &answer.body[at + STATUS.len()..];
        let status = rest.get(..3).and_then(number);
        let Some(one) = status.and_then(decided) else {
            let body = shown(&answer.body[at.saturating_sub(100)..]);
            return Err(AskError::Answer { body });
        };
        all.admitted += one.admitted;
        all.refused += one.refused;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Answer<'_> {
        Answer { status, head: b"", body: body.as_bytes() }
    }

    #[test]
    fn a_batch_is_counted_by_the_status_of_each_result() {
        let body = r#"{"results":[{"status":200,"decision":"admitted"},{"status":429},{"status":200}]}"#;
        let all = many(&answer(200, body)).expect("a good batch");
        assert_eq!(all, Decided { admitted: 2, refused: 1 });
    }

    #[test]
    fn the_id_of_a_hold_is_found_in_its_answer() {
        let answer = br#"{"decision":"admitted","admission":"adm_2f","cost":"1"}"#;
        assert_eq!(admission_id(answer), Some("adm_2f"));
        assert_eq!(admission_id(br#"{"decision":"refused"}"#), None);
        assert_eq!(admission_id(br#"{"admission":"adm_"#), None);
    }

    #[test]
    fn what_is_neither_admitted_nor_refused_is_an_error() {
        assert!(one(&answer(404, "{}")).is_err());
        assert!(one(&answer(503, "{}")).is_err());
        assert!(many(&answer(422, "{}")).is_err());
        assert!(many(&answer(200, r#"{"results":[{"status":200},{"status":404}]}"#)).is_err());
        assert!(many(&answer(200, r#"{"results":[{"status":"#)).is_err());
    }
}
