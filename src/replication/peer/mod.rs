//! How nodes talk: gRPC over HTTP/2, mutual TLS when configured.
//!
//! - [`wire`]: what is said
//! - [`entrance`]: who comes to the port, and who is sent away
//! - [`passport`]: who may say it to whom
//! - [`codec`]: messages are bytes
//! - [`client`] and [`server`]: the two ends

pub(crate) mod client;
pub(crate) mod codec;
pub(crate) mod entrance;
pub(crate) mod passport;
pub(crate) mod server;
pub(crate) mod wire;
