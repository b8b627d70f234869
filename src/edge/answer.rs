//! An answer on its way out: status, headers, and a body written once into one buffer.

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;

use crate::edge::wire::json::WriteJson;

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROBLEM_JSON: HeaderValue = HeaderValue::from_static("application/problem+json");

/// Room for a usual answer, so that writing it does not grow the buffer.
const BODY_BYTES_USUAL: usize = 1_024;

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn json(status: StatusCode, body: &impl WriteJson) -> Answer {
        Answer::with_type(status, JSON, written(body))
    }

    pub(crate) fn problem(status: StatusCode, body: &impl WriteJson) -> Answer {
        Answer::with_type(status, PROBLEM_JSON, written(body))
    }

    pub(crate) fn with_type(status: StatusCode, content_type: HeaderValue, body: Vec<u8>) -> Answer {
        let mut headers = HeaderMap::with_capacity(4);
        headers.insert(CONTENT_TYPE, content_type);
        Answer { status, headers, body }
    }

    pub(crate) fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        response
    }
}

fn written(body: &impl WriteJson) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(BODY_BYTES_USUAL);
    body.write(&mut buffer);
    buffer
}
