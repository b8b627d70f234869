//! The HTTP interface as a client sees it: a node is started by its configuration, on ports and a
//! disk of its own, and asked over real sockets.

mod access;
mod calls;
mod connection;
mod datasets;
mod hostile;
mod lifecycle;
mod node;
mod once;
#[path = "../nodes/ports.rs"]
mod ports;
mod signals;
mod tls;
mod topups;
