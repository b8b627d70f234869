//! From a path to a call, and around every call: access, bounds, deadline, counting.
//!
//! There is no stack of middleware. One function does what every call needs, once and in a fixed
//! order: headers bounded, caller known, body bounded, deadline kept, answer counted.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use axum::routing::{MethodFilter, MethodRouter, on};

use crate::edge::answer::Answer;
use crate::edge::calls::Call;
use crate::edge::kind::Kind;
use crate::edge::limits::{Limits, duration};
use crate::edge::problem::Problem;
use crate::edge::request::Asked;
use crate::edge::{
    Shared, accounts, admissions, audit, body, cluster, datasets, load, operations, policy, topups,
};

/// What a header takes beyond its name and value: the colon, the space and the end of the line.
const HEADER_BYTES_AROUND: usize = 4;

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let mut router = Router::new();
    for &call in Call::ALL {
        let shared = Arc::clone(&shared);
        let handler = move |request: Request| answer(Arc::clone(&shared), call, request);
        router = router.route(call.path(), method(call, handler));
    }
    let unknown = Arc::clone(&shared);
    router
        .method_not_allowed_fallback(move |request: Request| {
            let shared = Arc::clone(&shared);
            async move { unrouted(&shared, Kind::MethodNotAllowed, &request) }
        })
        .fallback(move |request: Request| {
            let shared = Arc::clone(&unknown);
            async move { unrouted(&shared, Kind::RouteUnknown, &request) }
        })
}

fn method<H, T>(call: Call, handler: H) -> MethodRouter
where
    H: axum::handler::Handler<T, ()>,
    T: 'static,
{
    let filter = match call.method() {
        axum::http::Method::GET => MethodFilter::GET,
        axum::http::Method::PUT => MethodFilter::PUT,
        _ => MethodFilter::POST,
    };
    on(filter, handler)
}

fn unrouted(shared: &Shared, kind: Kind, request: &Request) -> Response {
    shared.metrics.unrouted();
    let (method, target) = (request.method(), request.uri());
    let problem = match check_headers(&shared.limits, request.headers(), target) {
        Ok(()) => Problem::new(kind, format!("{method} {}", target.path())),
        Err(problem) => problem,
    };
    problem.into_answer().into_response()
}

async fn answer(shared: Arc<Shared>, call: Call, request: Request) -> Response {
    let started = Instant::now();
    let answer = match serve(&shared, call, request).await {
        Ok(answer) => answer,
        Err(problem) => problem.into_answer(),
    };
    shared.metrics.request(call, answer.status, started.elapsed());
    answer.into_response()
}

async fn serve(shared: &Arc<Shared>, call: Call, request: Request) -> Result<Answer, Problem> {
    let known = shared.replica.known();
    let (parts, body) = request.into_parts();
    check_headers(&shared.limits, &parts.headers, &parts.uri)?;
    shared.access.check(call.needs(), &parts.headers)?;
    let turned_away = if call.is_new_work() { shared.check_backlog().err() } else { None };
    let timeout = duration(shared.limits.request_timeout);
    let mut arrived = false;
    let answered = tokio::time::timeout(timeout, async {
        if let Some(problem) = turned_away {
            return Err(body::discard(problem, &parts.headers, body, shared.limits.body_bytes_max).await);
        }
        let body = body::collect(&parts.headers, body, shared.limits.body_bytes_max).await?;
        arrived = true;
        dispatch(call, Asked::new(Arc::clone(shared), parts, body, known)).await
    });
    match answered.await {
        Ok(result) => result,
        Err(_elapsed) if !arrived => {
            Err(Problem::new(Kind::RequestTimeout, "the body did not arrive in time"))
        }
        Err(_elapsed) if call.changes() => Err(Problem::outcome_unknown("no answer came in time")),
        Err(_elapsed) => Err(Problem::new(Kind::NoQuorum, "no answer came in time")),
    }
}

fn check_headers(limits: &Limits, headers: &HeaderMap, target: &Uri) -> Result<(), Problem> {
    let too_large = |detail: String| {
        let mut problem = Problem::new(Kind::HeadersTooLarge, detail);
        problem.close();
        Err(problem)
    };
    if headers.len() > limits.headers_max {
        return too_large(format!("the request has more than {} headers", limits.headers_max));
    }
    let target_bytes = target.path_and_query().map_or(0, |target| target.as_str().len());
    if header_bytes(headers) + target_bytes > limits.header_bytes_max {
        let detail = format!("the request line and headers have more than {} bytes", limits.header_bytes_max);
        return too_large(detail);
    }
    Ok(())
}

fn header_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + HEADER_BYTES_AROUND).sum()
}

async fn dispatch(call: Call, asked: Asked) -> Result<Answer, Problem> {
    match call {
        Call::Admit => admissions::admit(asked).await,
        Call::AdmitBatch => admissions::admit_batch(asked).await,
        Call::GetAdmission => admissions::get(asked).await,
        Call::Settle => admissions::settle(asked).await,
        Call::Extend => admissions::extend(asked).await,
        Call::Release => admissions::release(asked).await,
        Call::GetAccount => accounts::get(asked).await,
        Call::PutAccount => accounts::put(asked).await,
        Call::PutGrant => accounts::put_grant(asked).await,
        Call::RevokeGrant => accounts::revoke_grant(asked).await,
        Call::Reset => accounts::reset(asked).await,
        Call::GetLedger => datasets::ledger(asked).await,
        Call::GetUsage => datasets::usage(asked).await,
        Call::GetCharges => datasets::charges(asked).await,
        Call::GetTopUps => topups::list(asked).await,
        Call::GetTopUp => topups::get(asked).await,
        Call::ConfirmTopUp => topups::confirm(asked).await,
        Call::FailTopUp => topups::fail(asked).await,
        Call::GetPolicy => policy::get(asked).await,
        Call::PutPolicy => policy::put(asked).await,
        Call::Signal => load::signals(asked).await,
        Call::GetFeatures => load::features(asked).await,
        Call::GetFeature => load::feature(asked).await,
        Call::GetCluster => cluster::get(asked).await,
        Call::ChangeMembers => cluster::change_members(asked).await,
        Call::GetFacts => audit::facts(asked).await,
        Call::GetFactsDigest => audit::digest(asked).await,
        Call::GetBalances => audit::balances(asked).await,
        Call::Mark => audit::mark(asked).await,
        Call::GetHash => audit::hash(asked).await,
        Call::Livez => operations::livez(asked).await,
        Call::Readyz => operations::readyz(asked).await,
        Call::Metrics => operations::metrics(asked).await,
        Call::Openapi => operations::openapi(asked).await,
    }
}
