//! The calls about load.

use axum::http::StatusCode;

use crate::decision::State;
use crate::decision::reply::Reason;
use crate::edge::answer::Answer;
use crate::edge::body;
use crate::edge::kind::Kind;
use crate::edge::problem::Problem;
use crate::edge::replies;
use crate::edge::request::Asked;
use crate::edge::wire::load::{FeatureAnswer, FeaturesAnswer, SignalsBody};

/// Reports that one call may bring: of every source that one feature can have.
const SIGNALS_MAX: usize = 256;

pub(crate) async fn signals(asked: Asked) -> Result<Answer, Problem> {
    let body: SignalsBody<'_> = body::read(asked.json()?)?;
    if !(1..=SIGNALS_MAX).contains(&body.len()) {
        return Err(Problem::invalid("signals", format!("expected 1 to {SIGNALS_MAX} of them")));
    }
    let reply = asked.decide(body.command()).await?;
    Ok(replies::answer(&reply, None))
}

pub(crate) async fn feature(mut asked: Asked) -> Result<Answer, Problem> {
    let feature = asked.feature().await?;
    let read = |state: &State| Some((state.feature(&feature)?, state.sharers(&feature)));
    let view = asked.replica().read(read).await?;
    let (view, sharers) = view.ok_or_else(|| {
        Problem::new(Kind::Refused(Reason::FeatureUnknown), format!("there is no feature {feature:?}"))
    })?;
    Ok(Answer::json(StatusCode::OK, &FeatureAnswer { view: &view, sharers: &sharers }))
}

pub(crate) async fn features(asked: Asked) -> Result<Answer, Problem> {
    asked.query()?.finish()?;
    let (load, items) = asked.replica().read(|state| state.features()).await?;
    Ok(Answer::json(StatusCode::OK, &FeaturesAnswer { load, items: &items }))
}
